/* Resolves names through the C library's stub resolver. Built twice: against glibc and against musl.
 * Prints what `probe lookup` prints; see ../lookup.go. */
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static char answers[256][300];
static int count;

static int by_text(const void *a, const void *b) { return strcmp(a, b); }

static void add(const char *s) {
	if (count < 256)
		snprintf(answers[count++], sizeof answers[0], "%s", s);
}

/* The outcome of getaddrinfo(3) and getnameinfo(3). */
static int status(int err) {
	if (err == EAI_NONAME)
		return 0;
#ifdef EAI_NODATA
	if (err == EAI_NODATA)
		return 0;
#endif
	if (err)
		printf("error %s\n", gai_strerror(err));
	return err;
}

static int host(const char *name) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL, *a;
	char text[INET6_ADDRSTRLEN];
	int err = getaddrinfo(name, NULL, &hints, &list);
	for (a = err ? NULL : list; a; a = a->ai_next)
		if (getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) == 0)
			add(text);
	if (!err)
		freeaddrinfo(list);
	return status(err);
}

static int ptr(const char *address) {
	struct sockaddr_in in = {.sin_family = AF_INET};
	char name[256], dotted[258];
	int err;
	inet_pton(AF_INET, address, &in.sin_addr);
	err = getnameinfo((struct sockaddr *)&in, sizeof in, name, sizeof name, NULL, 0, NI_NAMEREQD);
	if (!err) {
		snprintf(dotted, sizeof dotted, "%s.", name);
		add(dotted);
	}
	return status(err);
}

/* Walks over the questions of a message; returns where the answers begin. */
static const unsigned char *skip_questions(const unsigned char *m, const unsigned char *end) {
	const unsigned char *p = m + NS_HFIXEDSZ;
	int n = ns_get16(m + 4);
	while (n-- > 0) {
		int len = dn_skipname(p, end);
		if (len < 0)
			return NULL;
		p += len + NS_QFIXEDSZ;
	}
	return p;
}

/* Asks for records of a type without a search; show prints the data of one. */
static int records(const char *name, int type, int search) {
	static unsigned char m[65536];
	const unsigned char *p, *end;
	int n, len = search ? res_search(name, ns_c_in, type, m, sizeof m) : res_query(name, ns_c_in, type, m, sizeof m);
	if (len < 0) {
		if (h_errno == HOST_NOT_FOUND || h_errno == NO_DATA)
			return 0;
		printf("error h_errno %d\n", h_errno);
		return 1;
	}
	if (len > (int)sizeof m)
		len = sizeof m;
	end = m + len;
	p = skip_questions(m, end);
	for (n = ns_get16(m + 6); p && n > 0; n--) {
		char target[256], text[300];
		int size, kind, skip = dn_skipname(p, end);
		if (skip < 0 || p + skip + NS_RRFIXEDSZ > end)
			break;
		p += skip;
		kind = ns_get16(p);
		size = ns_get16(p + 8);
		p += NS_RRFIXEDSZ;
		if (p + size > end)
			break;
		if (kind == type && type == ns_t_srv && dn_expand(m, end, p + 6, target, sizeof target) >= 0) {
			snprintf(text, sizeof text, "%s.:%d", target, ns_get16(p + 4));
			add(text);
		}
		if (kind == type && type == ns_t_txt) {
			int i, all = 0;
			for (i = 0; i < size; i += 1 + p[i])
				all += p[i];
			if (all > 100)
				snprintf(text, sizeof text, "%d bytes", all);
			else
				snprintf(text, sizeof text, "%.*s", p[0], p + 1);
			add(text);
		}
		p += size;
	}
	return 0;
}

int main(int argc, char **argv) {
	int i, j;
	for (i = 1; i < argc; i++) {
		char *kind = strdup(argv[i]), *name = strchr(kind, ':');
		int failed;
		if (!name)
			return 2;
		*name++ = 0;
		count = 0;
		printf("%s\t", argv[i]);
		if (!strcmp(kind, "host"))
			failed = host(name);
		else if (!strcmp(kind, "ptr"))
			failed = ptr(name);
		else if (!strcmp(kind, "srv"))
			failed = records(name, ns_t_srv, 1);
		else if (!strcmp(kind, "txt"))
			failed = records(name, ns_t_txt, 1);
		else
			return 2;
		free(kind);
		if (failed)
			continue;
		if (!count)
			printf("none");
		qsort(answers, count, sizeof answers[0], by_text);
		for (j = 0; j < count; j++)
			if (!j || strcmp(answers[j], answers[j - 1]))
				printf("%s%s", j ? "," : "", answers[j]);
		printf("\n");
	}
	return 0;
}

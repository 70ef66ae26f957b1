/* The C library's stub resolver, for each name on standard input: addresses of both families, as
 * applications ask by getaddrinfo(3). Built twice: against glibc and against musl. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int main(void) {
	char name[300];
	while (fgets(name, sizeof name, stdin)) {
		struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list = NULL;
		struct timespec from, to;
		int err;
		name[strcspn(name, "\n")] = 0;
		clock_gettime(CLOCK_MONOTONIC, &from);
		err = getaddrinfo(name, NULL, &hints, &list);
		clock_gettime(CLOCK_MONOTONIC, &to);
		if (!err)
			freeaddrinfo(list);
		printf("%ld %s\n", (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000,
		       err ? gai_strerror(err) : "");
		fflush(stdout);
	}
	return 0;
}

package deploy

import (
	"maps"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/core"
)

var (
	kubeadm   = Node{ServiceHosts: map[string]string{"kube-dns": "10.96.0.10", "kube-dns-upstream": "10.98.7.6"}}
	kubespray = Node{ServiceHosts: map[string]string{"coredns": "10.233.0.3"}}
)

// following is n with a fallback that follows a Service.
func following(n Node, service string) Node {
	n.Follows = Namespace + "/" + service
	return n
}

// namingPods is n with diagnostics that name pods.
func namingPods(n Node) Node {
	n.NamesPods = true
	return n
}

// reviewing is n with a diagnostics API that lets the API server decide about access.
func reviewing(n Node) Node {
	n.ReviewsAccess = true
	return n
}

// servingPage is n with the page of the diagnostics on loopback.
func servingPage(n Node) Node {
	n.ServesPage = true
	return n
}

// form is a kustomization of the cache, with the cluster that it is made for.
type form struct {
	dir      string
	node     Node
	iptables bool
	name     string   // of DaemonSet and account
	addrs    []string // that the cache answers at
}

func forms() []form {
	plain := []form{
		{dir: ".", node: namingPods(following(kubeadm, "kube-dns")), name: "nodelocaldns", addrs: []string{"169.254.25.10"}},
		{dir: "overlays/link-local", node: namingPods(following(kubespray, "coredns")), name: "nodelocaldns", addrs: []string{"169.254.25.10"}},
		{dir: "overlays/service-ip", node: kubeadm, name: "node-local-dns", addrs: []string{"169.254.20.10", "10.96.0.10"}},
	}
	all := slices.Clone(plain)
	for _, f := range plain {
		f.iptables = true
		f.node.ExtraCaps = []core.Capability{"NET_RAW"}
		f.node.Lock = true
		all = append(all, f)
	}
	return all
}

func (f form) String() string {
	if f.iptables {
		return f.dir + "+iptables"
	}
	return f.dir
}

// variant changes the form's kustomization as its reader would, with images of their own and where asked
// for with the component, and returns its folder.
func (f form) variant(t *testing.T, tree Tree) string {
	name := path.Join(f.dir, "kustomization.yaml")
	raw, err := tree.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	content := strings.NewReplacer("newName: localcache # ", "newName: images.example.org/plain # ",
		"newName: localcache-iptables # ", "newName: images.example.org/with-iptables # ").Replace(string(raw))
	if f.iptables {
		// If there are other components, the line for this one belongs among them.
		if strings.Contains(content, "\ncomponents:\n") {
			content = strings.Replace(content, "  # - ", "  - ", 1)
		} else {
			content += "components:\n  - ../../components/iptables\n"
		}
		if !strings.Contains(content, "\n  - components/iptables\n") && !strings.Contains(content, "\n  - ../../components/iptables\n") {
			t.Fatalf("%s has no line for components/iptables", name)
		}
	}
	write(t, tree, name, content)
	return f.dir
}

func write(t *testing.T, tree Tree, name, content string) {
	t.Helper()
	if err := tree.Write(name, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T) Tree {
	t.Helper()
	tree, err := LoadTree(Root)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// judge builds dir and hands every object to the three judges.
func judge(tree Tree, s *Schema, dir string) ([]runtime.Object, []error) {
	objects, err := tree.Build(dir)
	if err != nil {
		return nil, []error{err}
	}
	var decoded []runtime.Object
	var errs []error
	for _, o := range objects {
		if err := s.Validate(o); err != nil {
			errs = append(errs, err)
		}
		obj, err := Decode(o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := Validate(obj); err != nil {
			errs = append(errs, err)
		}
		decoded = append(decoded, obj)
	}
	return decoded, errs
}

func schemaOf(t *testing.T) *Schema {
	t.Helper()
	s, err := LoadSchema()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestForms(t *testing.T) {
	s := schemaOf(t)
	for _, f := range forms() {
		t.Run(f.String(), func(t *testing.T) {
			tree := load(t)
			objects, errs := judge(tree, s, f.variant(t, tree))
			for _, err := range errs {
				t.Error(err)
			}
			set, err := NewSet(objects)
			if err != nil {
				t.Fatal(err)
			}
			if err := Policy(set, f.node); err != nil {
				t.Error(err)
			}
			if set.DaemonSet.Name != f.name || set.Accounts[f.name] == nil {
				t.Errorf("DaemonSet and account are not both named %s", f.name)
			}
			// The pods of the previous cache read theirs until they are replaced.
			if len(set.ConfigMaps) != 1 || set.ConfigMaps["localcache"] == nil {
				t.Errorf("want one ConfigMap, localcache: found %v", slices.Sorted(maps.Keys(set.ConfigMaps)))
			}
			// The migration depends on this: the new DaemonSet adopts the old pods.
			if got := set.DaemonSet.Spec.Selector.MatchLabels; !reflect.DeepEqual(got, map[string]string{"k8s-app": "node-local-dns"}) {
				t.Errorf("selector %v would not adopt the pods of nodelocaldns", got)
			}
			c := set.DaemonSet.Spec.Template.Spec.Containers[0]
			if got, _ := Flag(Args(&c, f.node), "localip"); got != strings.Join(f.addrs, ",") {
				t.Errorf("-localip=%s, want %v", got, f.addrs)
			}
			image := "images.example.org/plain:dev"
			if f.iptables {
				image = "images.example.org/with-iptables:dev"
			}
			if c.Image != image {
				t.Errorf("image %s, want the one that was named, %s", c.Image, image)
			}
			upstream, _ := Flag(c.Args, "upstreamsvc")
			if _, ok := f.node.ServiceHosts[upstream]; !ok {
				t.Errorf("-upstreamsvc=%s is not a Service of that cluster", upstream)
			}
			if f.dir == "overlays/service-ip" {
				up := set.Services[upstream]
				if up == nil || up.Spec.Selector["k8s-app"] != "kube-dns" || len(up.Spec.Ports) != 2 {
					t.Errorf("Service %s in front of kube-dns, over UDP and TCP, is missing", upstream)
				}
				if set.Services[f.name] == nil {
					t.Errorf("headless Service %s for metrics is missing", f.name)
				}
			} else if len(set.Services) != 0 {
				t.Errorf("unexpected Services: %v", set.Services)
			}
		})
	}
}

// TestComponents removes each component, and adds the component pods where it is missing.
func TestComponents(t *testing.T) {
	s := schemaOf(t)
	for _, c := range []struct {
		name, dir string
		node      Node
		edits     []string // old and new
	}{
		{"without the fallback", ".", namingPods(kubeadm), []string{"  - components/fallback\n", ""}},
		{"without pods", ".", following(kubeadm, "kube-dns"), []string{"  - components/pods\n", ""}},
		{"without both", ".", kubeadm, []string{"  - components/fallback\n", "", "  - components/pods\n", "", "\ncomponents:\n", "\ncomponents: []\n"}},
		{"with access by the cluster's rules", ".", reviewing(namingPods(following(kubeadm, "kube-dns"))), []string{"  - components/pods\n", "  - components/pods\n  - components/diag-access\n"}},
		{"add-on with access by the cluster's rules", "overlays/service-ip", reviewing(kubeadm), []string{"resources:\n", "components:\n  - ../../components/diag-access\nresources:\n"}},
		{"with the page", ".", servingPage(namingPods(following(kubeadm, "kube-dns"))), []string{"  - components/pods\n", "  - components/pods\n  - components/diag-page\n"}},
		{"add-on with the page", "overlays/service-ip", servingPage(kubeadm), []string{"resources:\n", "components:\n  - ../../components/diag-page\nresources:\n"}},
		{"add-on with pods", "overlays/service-ip", namingPods(kubeadm), []string{"resources:\n", "components:\n  - ../../components/pods\nresources:\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := load(t)
			file := path.Join(c.dir, "kustomization.yaml")
			for i := 0; i < len(c.edits); i += 2 {
				rewrite(t, tree, file, c.edits[i], c.edits[i+1])
			}
			objects, errs := judge(tree, s, c.dir)
			for _, err := range errs {
				t.Error(err)
			}
			set, err := NewSet(objects)
			if err != nil {
				t.Fatal(err)
			}
			if err := Policy(set, c.node); err != nil {
				t.Error(err)
			}
		})
	}
}

// The manual's kustomizations, as they stand there.
func TestManualKustomizations(t *testing.T) {
	manual, err := os.ReadFile("../../doc/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	first := regexp.MustCompile(`(?s)cat > my-cluster/kustomization.yaml <<'END'\n(.*?)\nEND\n`).FindSubmatch(manual)
	own := regexp.MustCompile("(?s)```yaml\n(configMapGenerator:.*?)```").FindSubmatch(manual)
	page := regexp.MustCompile("(?s)```yaml\n(components:\n[^`]*diag-page\n)```").FindSubmatch(manual)
	if first == nil || own == nil || page == nil {
		t.Fatalf("the manual has a kustomization: %t, a Corefile of one's own: %t, the page: %t", first != nil, own != nil, page != nil)
	}
	const mine, registry = "# mine\n", "registry.example.org/"
	node := namingPods(following(kubeadm, "kube-dns"))
	iptables := node
	iptables.ExtraCaps, iptables.Lock = []core.Capability{"NET_RAW"}, true
	s := schemaOf(t)
	for _, c := range []struct {
		name, added, image string
		node               Node
	}{
		{"own Corefile", string(own[1]), "localcache:v1", node},
		{"own Corefile and page", string(own[1]) + string(page[1]), "localcache:v1", servingPage(node)},
		{"own Corefile and iptables", string(own[1]) + "components: [../deploy/components/iptables]\n", "localcache-iptables:v1", iptables},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := load(t)
			raw, err := tree.Read("base/Corefile")
			if err != nil {
				t.Fatal(err)
			}
			// A last line without an end must not swallow what comes after it.
			write(t, tree, "../my-cluster/Corefile", mine+strings.TrimSpace(string(raw)))
			write(t, tree, "../my-cluster/kustomization.yaml", string(first[1])+"\n"+c.added)
			objects, errs := judge(tree, s, "../my-cluster")
			for _, err := range errs {
				t.Error(err)
			}
			set, err := NewSet(objects)
			if err != nil {
				t.Fatal(err)
			}
			if err := Policy(set, c.node); err != nil {
				t.Error(err)
			}
			if got := set.ConfigMaps["localcache"].Data["Corefile"]; !strings.HasPrefix(got, mine) {
				t.Errorf("the Corefile is not one's own:\n%s", got)
			}
			if got := set.DaemonSet.Spec.Template.Spec.Containers[0].Image; got != registry+c.image {
				t.Errorf("image %s, want %s", got, registry+c.image)
			}
		})
	}
}

func TestTeardown(t *testing.T) {
	objects, errs := judge(load(t), schemaOf(t), "teardown")
	for _, err := range errs {
		t.Error(err)
	}
	set, err := NewSet(objects)
	if err != nil {
		t.Fatal(err)
	}
	ds := set.DaemonSet
	if ds.Labels["k8s-app"] == "node-local-dns" || ds.Spec.Template.Labels["k8s-app"] == "node-local-dns" {
		t.Error("the label of the cache's pods is on those of teardown: Services and the cache's DaemonSet would take them in")
	}
	p := ds.Spec.Template.Spec
	if len(p.InitContainers) != 1 || !p.SecurityContext.HostNetwork {
		t.Fatal("want one init container in the node's network")
	}
	c := p.InitContainers[0]
	if !reflect.DeepEqual(c.Args, []string{"teardown"}) || c.SecurityContext.RunAsUser == nil || *c.SecurityContext.RunAsUser != 0 ||
		!sameSet(c.SecurityContext.Capabilities.Add, []core.Capability{"NET_ADMIN", "NET_RAW"}) {
		t.Errorf("the init container does not run teardown with what it needs: args %v, %+v", c.Args, *c.SecurityContext)
	}
	if got := p.Containers[0].Image; got != c.Image {
		t.Errorf("the container that waits is of another image, %s: one more to be pulled", got)
	}
	if w := p.Containers[0].SecurityContext; len(w.Capabilities.Add) != 0 || *w.RunAsUser == 0 {
		t.Error("the container that waits has rights")
	}
}

// What is deployed is what Corefile.example shows and explains, and what its own test starts.
func TestCorefileIsTheExample(t *testing.T) {
	example, err := os.ReadFile("../../Corefile.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"base/Corefile", "overlays/service-ip/Corefile"} {
		t.Run(file, func(t *testing.T) {
			raw, err := load(t).Read(file)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.NewReplacer(
				"__PILLAR__DNS__DOMAIN__", "cluster.local",
				"__PILLAR__LOCAL__DNS__", "169.254.25.10",
				"169.254.20.10:8080", "169.254.25.10:9254",
				"169.254.20.10:8181", "169.254.25.10:9255",
			).Replace(string(raw))
			got, want := directives(t, text), directives(t, string(example))
			if !reflect.DeepEqual(got, want) {
				t.Errorf("the directives differ from those of Corefile.example:\n got %v\nwant %v", got, want)
			}
		})
	}
}

// directives is a Corefile without its comments and layout.
func directives(t *testing.T, text string) []map[string][]string {
	t.Helper()
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string][]string
	for _, b := range blocks {
		d := map[string][]string{"keys": b.Keys}
		for name, tokens := range b.Tokens {
			d[name] = words(tokens)
		}
		all = append(all, d)
	}
	return all
}

// The program itself takes the arguments and the directives.
func TestProgramAccepts(t *testing.T) {
	p, err := BuildProgram(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tree := load(t)
	for _, f := range forms() {
		if f.iptables {
			continue // changes neither
		}
		ds, corefile := cacheOf(t, tree, f)
		args := Args(&ds.Spec.Template.Spec.Containers[0], f.node)
		if err := p.AcceptsFlags(args); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		if err := p.AcceptsDirectives(corefile); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
	if err := p.AcceptsTeardown([]string{"teardown"}); err != nil {
		t.Error(err)
	}
	// And it would say so if not.
	if err := p.AcceptsFlags([]string{"-localip=169.254.20.10,$(KUBE_DNS_SERVICE_HOST)"}); err == nil {
		t.Error("an address that the kubelet did not fill in is accepted")
	}
	if err := p.AcceptsFlags([]string{"-local-ip=169.254.25.10"}); err == nil {
		t.Error("a misspelled flag is accepted")
	}
	if err := p.AcceptsTeardown([]string{"tear-down"}); err == nil {
		t.Error("a misspelled subcommand is accepted")
	}
	if err := p.AcceptsDirectives(".:53 {\n  kubernetes cluster.local\n}\n"); err == nil {
		t.Error("a directive that is not built in is accepted")
	}
}

func cacheOf(t *testing.T, tree Tree, f form) (*apps.DaemonSet, string) {
	t.Helper()
	built, err := tree.Build(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	var objects []runtime.Object
	for _, o := range built {
		obj, err := Decode(o)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, obj)
	}
	set, err := NewSet(objects)
	if err != nil {
		t.Fatal(err)
	}
	return set.DaemonSet, set.ConfigMaps["localcache"].Data["Corefile"]
}

// TestDocumentedFolders builds each folder that README and the pages about installation give to kubectl.
func TestDocumentedFolders(t *testing.T) {
	tree := load(t)
	for name, least := range map[string]int{"README.md": 2, "doc/install.md": 1, "doc/migrate.md": 1} {
		page, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`kubectl [a-z]+ -k (deploy[a-z/-]*)`).FindAllSubmatch(page, -1)
		if len(found) < least {
			t.Errorf("only %d commands found in %s, want at least %d: the pattern is out of date", len(found), name, least)
		}
		for _, m := range found {
			dir := strings.Trim(strings.TrimPrefix(string(m[1]), "deploy"), "/")
			if _, err := tree.Build(dir); err != nil {
				t.Errorf("%s: %s: %v", name, m[0], err)
			}
		}
		for _, m := range regexp.MustCompile("`(deploy/[a-zA-Z./-]*)`").FindAllSubmatch(page, -1) {
			if _, err := os.Stat("../../" + string(m[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

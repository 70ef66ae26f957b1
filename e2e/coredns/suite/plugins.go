//go:build !ours

package test

import _ "github.com/coredns/coredns/core/plugin" // the plugins that the tests use, with CoreDNS's cache

// Package localcache holds the Corefile that the project ships, so that the program which tries it out
// and the tests that start it use the very file that readers are shown.
package localcache

import _ "embed"

// CorefileExample is Corefile.example.
//
//go:embed Corefile.example
var CorefileExample []byte

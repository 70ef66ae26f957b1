package observe

import "strings"

// wireName is a name in wire format, of labels that need no escapes.
func wireName(text string) []byte {
	var wire []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(text, "."), ".") {
		if label != "" {
			wire = append(append(wire, byte(len(label))), label...)
		}
	}
	return append(wire, 0)
}

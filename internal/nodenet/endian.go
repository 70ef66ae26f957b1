package nodenet

import "encoding/binary"

// nativeLittleEndian tells the byte order in which /proc prints addresses.
var nativeLittleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

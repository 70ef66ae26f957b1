// Package wire reads DNS messages as octets, for those who replay answers instead of making them.
//
// It has two strict readers and no more. [Query.Parse] knows the plain query, which is nearly every query
// of a node, and makes of it the key that an answer depends on. [ParseAnswer] knows the answer that can be
// said again later: it finds the TTL fields and the sets of addresses that may be rotated. Each of them
// refuses whatever it does not know in every octet. A refusal costs time, because CoreDNS then answers
// as it always did; a wrong acceptance would cost a wrong answer.
//
// Names of sections and fields are those of RFC 1035, section 4, and RFC 6891, section 6.1.
package wire

// Fixed sizes, in octets.
const (
	headerSize = 12 // RFC 1035, section 4.1.1
	maxName    = 255
	maxLabel   = 63
	fixedSize  = 10 // TYPE, CLASS, TTL and RDLENGTH of a record
	optSize    = 11 // an OPT record without options: a root owner and the fixed part
)

// Types that are read here, by their numbers in IANA's registry "DNS Parameters".
const (
	typeA        = 1
	typeNS       = 2
	typeMD       = 3
	typeMF       = 4
	typeCNAME    = 5
	typeSOA      = 6
	typeMB       = 7
	typeMG       = 8
	typeMR       = 9
	typePTR      = 12
	typeMINFO    = 14
	typeMX       = 15
	typeRP       = 17
	typeAFSDB    = 18
	typeRT       = 21
	typeNSAPPTR  = 23
	typeSIG      = 24
	typePX       = 26
	typeAAAA     = 28
	typeNXT      = 30
	typeSRV      = 33
	typeNAPTR    = 35
	typeKX       = 36
	typeDNAME    = 39
	typeOPT      = 41
	typeIPSECKEY = 45
	typeRRSIG    = 46
	typeNSEC     = 47
	typeHIP      = 55
	typeTALINK   = 58
	typeSVCB     = 64
	typeHTTPS    = 65
	typeLP       = 107
	typeAMTRELAY = 260

	// typeMetaFirst and typeMetaLast bound the types of transactions and of questions, TKEY, TSIG and ANY among them (RFC 6895, section 3.1).
	typeMetaFirst = 128
	typeMetaLast  = 255
)

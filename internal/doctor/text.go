package doctor

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// sentence returns s with a capital letter at the beginning.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// count returns a number with the noun for what it counts.
func count(n uint64, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "y"):
		what = strings.TrimSuffix(what, "y") + "ies"
	default:
		what += "s"
	}
	return grouped(n) + " " + what
}

// grouped returns a number with commas: 1,234,567.
func grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// rate returns a rate in words.
func rate(perSecond float64) string {
	if perSecond < 9.95 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64) + " queries/s"
	}
	return grouped(uint64(perSecond+0.5)) + " queries/s"
}

// share returns part in percent of whole. Only the whole is 100 %, and only nothing is 0 %.
func share(part, whole uint64) string {
	if whole == 0 {
		return "0 %"
	}
	percent := 100 * float64(part) / float64(whole)
	switch {
	case part == 0 || part == whole:
		return fmt.Sprintf("%.0f %%", percent)
	case percent < 0.1:
		return "under 0.1 %"
	case percent < 10:
		return fmt.Sprintf("%.1f %%", percent)
	case percent > 99:
		return fmt.Sprintf("%.1f %%", min(percent, 99.9))
	}
	return fmt.Sprintf("%.0f %%", percent)
}

// brief returns a duration with two digits.
func brief(d time.Duration) string {
	switch {
	case d >= 9950*time.Millisecond:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

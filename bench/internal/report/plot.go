package report

import (
	"fmt"
	"html"
	"strings"
)

// Geometry of the plot, in pixels.
const (
	plotWidth   = 860
	panelWidth  = plotWidth / 2
	nameWidth   = 112 // of the servers' names, left of the bars
	valueWidth  = 58  // of the figures, right of them
	barHeight   = 16
	barStep     = 22
	panelHead   = 56
	plotPadding = 14
)

// plotStyle uses colours that follow the reader's scheme; the plot brings its own background, so that it can be read
// also where the page around it has another.
const plotStyle = `<style>
.back{fill:#ffffff;stroke:#d0d7de}
text{font-family:system-ui,"Segoe UI",Helvetica,Arial,"DejaVu Sans",sans-serif;font-size:12px;fill:#1f2328}
.title{font-size:13.5px;font-weight:600}.note{font-size:11px;fill:#59636e}
.name,.echo-name{text-anchor:end}.subject{font-weight:700}.echo-name{fill:#59636e}
.bar{fill:#8c959f}.us{fill:#1a7f37}.echo{fill:none;stroke:#8c959f;stroke-dasharray:3 2}
@media(prefers-color-scheme:dark){
.back{fill:#0d1117;stroke:#30363d}text{fill:#e6edf3}.note,.echo-name{fill:#9198a1}
.bar{fill:#656c76}.us{fill:#3fb950}.echo{stroke:#9198a1}}
</style>
`

// plotted are the works of the plot's panels.
var plotted = []Work{Hits, Steady10k, Mix, Miss}

// Plot returns an SVG picture of the CPU time for an answer, a panel for each work, the cheapest server first. Echoes
// are drawn as outlines: they are no DNS servers but show the cost of the socket alone.
func (r *Run) Plot() string {
	var panels []Work
	var tops []int // of the lines of two panels
	total := 0
	for _, w := range plotted {
		n := len(r.measured(w))
		if n == 0 {
			continue
		}
		if len(panels)%2 == 0 {
			tops = append(tops, total)
		}
		panels = append(panels, w)
		total = max(total, tops[len(tops)-1]+panelHead+n*barStep+plotPadding)
	}
	total += plotPadding
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="CPU time for an answer, by server">`+"\n",
		plotWidth, total, plotWidth, total)
	b.WriteString(plotStyle)
	fmt.Fprintf(&b, `<rect class="back" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>`+"\n", plotWidth-1, total-1)
	for i, w := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", i%2*panelWidth, tops[i/2])
		r.panel(&b, w)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (r *Run) panel(b *strings.Builder, w Work) {
	servers := r.measured(w)
	most := 0.
	noisy := ""
	for _, s := range servers {
		v, _ := r.Value(w, s.Name, CPU)
		most = max(most, v)
		if r.Noisy(w, s.Name) {
			noisy = "; ~ disturbed"
		}
	}
	fmt.Fprintf(b, `<text class="title" x="%d" y="26">%s</text>`+"\n", plotPadding, html.EscapeString(capital(titles[w])))
	fmt.Fprintf(b, `<text class="note" x="%d" y="43">CPU µs for an answer, less is better%s</text>`+"\n", plotPadding, noisy)
	room := float64(panelWidth - nameWidth - valueWidth - plotPadding)
	for i, s := range servers {
		v, _ := r.Value(w, s.Name, CPU)
		width := 0.
		if most > 0 {
			width = room * v / most
		}
		bar, name, figure := "bar", "name", ""
		switch {
		case s.Subject:
			bar, name, figure = "us", "name subject", ` class="subject"`
		case s.Echo:
			bar, name = "echo", "echo-name"
		}
		y := panelHead + i*barStep
		fmt.Fprintf(b, `<text class="%s" x="%d" y="%d">%s</text>`, name, nameWidth, y+barHeight-4, html.EscapeString(s.Name))
		fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`, bar, nameWidth+8, y, max(width, 1), barHeight)
		fmt.Fprintf(b, `<text%s x="%.1f" y="%d">%s%s</text>`+"\n", figure, float64(nameWidth+14)+width, y+barHeight-4, mark(r.Noisy(w, s.Name)), number(v))
	}
}

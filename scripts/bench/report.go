package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// samples are repeated measurements of one thing.
type samples []float64

func (s *samples) add(d time.Duration) { *s = append(*s, d.Seconds()) }

// middle is the median, the lower of two; 0 for nothing.
func (s samples) middle() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(s))[(len(s)-1)/2]
}

func (s samples) median() time.Duration { return time.Duration(s.middle() * float64(time.Second)) }

// A pair is a measurement and what it is compared with.
type pair struct{ base, got samples }

// A rule is what a figure must be: at most factor times its base, and plus. A
// factor of 0 makes the bound the same on every machine.
type rule struct {
	factor, plus float64
	least        bool // at least, instead of at most
}

func atMost(bound float64) *rule  { return &rule{plus: bound} }
func atLeast(bound float64) *rule { return &rule{plus: bound, least: true} }

// A figure is a row of the table of ratios.
type figure struct {
	name, against string // against is "" if there is no base
	base, got     float64
	unit          string
	rule          *rule // nil if it is only for information
}

func (f figure) bound() float64 { return f.rule.factor*f.base + f.rule.plus }

// within says whether the figure is what it must be.
func (f figure) within() bool {
	switch {
	case f.rule == nil:
		return true
	case f.rule.least:
		return f.got >= f.bound()
	default:
		return f.got <= f.bound()
	}
}

// must is the rule in words.
func (f figure) must() string {
	if f.rule == nil {
		return "-"
	}
	sign := "<="
	if f.rule.least {
		sign = ">="
	}
	words := fmt.Sprintf("%s %.2f", sign, f.bound())
	switch {
	case f.rule.factor == 0:
		return words
	case f.rule.factor == 1.0/6:
		return words + " (1/6)"
	case f.rule.plus == 0:
		return words + fmt.Sprintf(" (%gx)", f.rule.factor)
	default:
		return words + fmt.Sprintf(" (%gx + %g)", f.rule.factor, f.rule.plus)
	}
}

func (f figure) verdict() string {
	switch {
	case f.rule == nil:
		return ""
	case f.within():
		return "pass"
	default:
		return "FAIL"
	}
}

// A built is a build of Cargo and its name in the report.
type built struct {
	label string
	record
}

// A report is what is printed in the end.
type report struct {
	machine string
	notes   []string
	builds  []built
	figures []figure
}

func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *report) build(label string, rec record) {
	progress("%6.2f s Cargo: %s", rec.took().Seconds(), label)
	r.builds = append(r.builds, built{label, rec})
}

func (r *report) seconds(name, against string, p pair, must *rule) {
	r.row(name, against, "s", p, must)
}

func (r *report) megabytes(name, against string, p pair, must *rule) {
	r.row(name, against, "MB", p, must)
}

// absolute is a row of a figure that is compared with nothing.
func (r *report) absolute(name, unit string, got samples, must *rule) {
	r.row(name, "", unit, pair{got: got}, must)
}

func (r *report) row(name, against, unit string, p pair, must *rule) {
	f := figure{name, against, p.base.middle(), p.got.middle(), unit, must}
	progress("%s: %.2f %s, must be %s %s", name, f.got, unit, f.must(), f.verdict())
	r.figures = append(r.figures, f)
}

// write prints where the time went, then the ratios.
func (r *report) write(w io.Writer) error {
	fmt.Fprintf(w, "%s\nload average at the end: %s\n", r.machine, load())
	for _, n := range r.notes {
		fmt.Fprintln(w, n)
	}
	if len(r.builds) > 0 {
		fmt.Fprintf(w, "\nWhere the time of Cargo's builds went, in seconds:\n\n")
		if err := r.writeBuilds(w); err != nil {
			return err
		}
	}
	fmt.Fprintf(w, "\nFigures:\n\n")
	return r.writeFigures(w)
}

// writeBuilds has a column for each phase that a record named, in their order.
func (r *report) writeBuilds(w io.Writer) error {
	var phases []string
	for _, b := range r.builds {
		for _, p := range b.Phases {
			if !slices.Contains(phases, p.Name) {
				phases = append(phases, p.Name)
			}
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "build\twait\t%s\trest\ttotal\n", strings.Join(phases, "\t"))
	for _, b := range r.builds {
		seconds := map[string]float64{}
		rest := b.Finished.Sub(b.Started).Seconds()
		for _, p := range b.Phases {
			seconds[p.Name] += p.Seconds
			rest -= p.Seconds
		}
		fmt.Fprintf(tw, "%s\t%.2f\t", b.label, b.Started.Sub(b.Accepted).Seconds())
		for _, p := range phases {
			fmt.Fprintf(tw, "%.2f\t", seconds[p])
		}
		fmt.Fprintf(tw, "%.2f\t%.2f\n", rest, b.took().Seconds())
	}
	return tw.Flush()
}

func (r *report) writeFigures(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "case\tagainst\tbase\tCargo\tmust be\tratio\t\n")
	bound, within := 0, 0
	for _, f := range r.figures {
		against, base, ratio := "-", "-", "-"
		if f.against != "" {
			against, base, ratio = f.against, fmt.Sprintf("%.2f %s", f.base, f.unit), fmt.Sprintf("%.2f", f.got/f.base)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.2f %s\t%s\t%s\t%s\n", f.name, against, base, f.got, f.unit, f.must(), ratio, f.verdict())
		if f.rule != nil {
			bound++
			if f.within() {
				within++
			}
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d of %d are what they must be.\n", within, bound)
	return err
}

// machine says on what it was measured.
func machine(ctx context.Context, o options) string {
	var version bytes.Buffer
	if err := command(ctx, "", nil, &version, o.cargo, "version"); err != nil {
		fmt.Fprintf(&version, "unknown: %v", err)
	}
	cargo, _, _ := strings.Cut(version.String(), "\n")
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	return fmt.Sprintf("%s on %s, %d processors, Linux %s, median of %d\nload average at the start: %s",
		cargo, o.executor, runtime.NumCPU(), strings.TrimSpace(string(kernel)), o.rounds, load())
}

// load is the load average of 1, 5 and 15 minutes.
func load() string {
	content, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(content))[:3], " ")
}

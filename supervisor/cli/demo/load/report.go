package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// How many failures are kept with their message.
const maxSamples = 10

// Report is what has been counted. A request that is under way is in no count.
type Report struct {
	Phases      []Phase        // in the order in which they began
	Generations map[string]int // right answers by the generation that gave them
	Goodbyes    int            // kept connections that the server closed while nothing was under way; no failures
	Samples     []Failure      // the first few failures
}

// Phase is what was answered, or failed, while it was in force.
type Phase struct {
	Name     string
	Answered int // right answers
	Failed   [classes]int
	latency  histogram
}

// Failure is one failed request.
type Failure struct {
	At      time.Time
	Phase   string
	Class   Class
	Message string
}

func (f Failure) String() string {
	return fmt.Sprintf("%s %s, %s: %s", f.At.Format("15:04:05.000"), f.Phase, f.Class, f.Message)
}

// Failures is the number of requests that failed in this phase.
func (p *Phase) Failures() (n int) {
	for _, count := range p.Failed {
		n += count
	}
	return n
}

// Latency returns the time within which the fraction q (0 to 1) of the right
// answers came, the connection included; exact to 3 %. 1 is the slowest of
// all, exactly. Without answers it is 0.
func (p *Phase) Latency(q float64) time.Duration { return p.latency.quantile(q) }

// Requests is the number of requests that have ended, one way or the other.
func (r *Report) Requests() int {
	total := r.Total()
	return total.Answered + total.Failures()
}

// Failures is the number of requests that failed.
func (r *Report) Failures() int {
	total := r.Total()
	return total.Failures()
}

// Total is all phases in one.
func (r *Report) Total() Phase {
	total := Phase{Name: "total"}
	for i := range r.Phases {
		total.add(&r.Phases[i])
	}
	return total
}

// Sum adds up several kinds of traffic, phase by phase.
func Sum(reports ...Report) Report {
	var sum Report
	for i := range reports {
		sum.add(&reports[i])
	}
	return sum
}

// String is the count in one line, with a line more for each sample.
func (r Report) String() string {
	total := r.Total()
	line := fmt.Sprintf("%d requests, %d failures", r.Requests(), r.Failures())
	for _, class := range Classes() {
		if n := total.Failed[class]; n > 0 {
			line += fmt.Sprintf(", %d %s", n, class)
		}
	}
	line += fmt.Sprintf("; p50 %v, p99 %v, max %v", total.Latency(0.5), total.Latency(0.99), total.Latency(1))
	for _, generation := range slices.Sorted(maps.Keys(r.Generations)) {
		line += fmt.Sprintf("; %q %d", generation, r.Generations[generation])
	}
	lines := []string{line}
	for _, failure := range r.Samples {
		lines = append(lines, failure.String())
	}
	return strings.Join(lines, "\n\t")
}

func (p *Phase) add(other *Phase) {
	p.Answered += other.Answered
	for class, n := range other.Failed {
		p.Failed[class] += n
	}
	p.latency.merge(&other.latency)
}

func (r *Report) add(other *Report) {
	for i := range other.Phases {
		phase := &other.Phases[i]
		r.Phases[r.phase(phase.Name)].add(phase)
	}
	for generation, n := range other.Generations {
		r.generation(generation, n)
	}
	r.Goodbyes += other.Goodbyes
	r.Samples = append(r.Samples, other.Samples...)
	slices.SortFunc(r.Samples, func(a, b Failure) int { return a.At.Compare(b.At) })
	r.Samples = r.Samples[:min(len(r.Samples), maxSamples)]
}

// phase returns the index of the phase of that name, which it adds if need be.
func (r *Report) phase(name string) int {
	for i := range r.Phases {
		if r.Phases[i].Name == name {
			return i
		}
	}
	r.Phases = append(r.Phases, Phase{Name: name})
	return len(r.Phases) - 1
}

func (r *Report) generation(name string, n int) {
	if r.Generations == nil {
		r.Generations = map[string]int{}
	}
	r.Generations[name] += n
}

func (r *Report) answered(phase int, generation string, took time.Duration) {
	p := &r.Phases[phase]
	p.Answered++
	p.latency.add(took)
	r.generation(generation, 1)
}

func (r *Report) failed(phase int, class Class, err error) {
	p := &r.Phases[phase]
	p.Failed[class]++
	if len(r.Samples) < maxSamples {
		r.Samples = append(r.Samples, Failure{time.Now(), p.Name, class, oneLine(err)})
	}
}

func (r *Report) clone() Report {
	c := *r
	c.Phases = slices.Clone(r.Phases)
	c.Generations = maps.Clone(r.Generations)
	c.Samples = slices.Clone(r.Samples)
	return c
}

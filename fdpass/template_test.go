package fdpass

import (
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	h := Handoff{Sockets: threeSockets(), Generation: 7}
	for _, tc := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"{fd:web}", "3"},
		{"fd://{fd:admin}", "fd://4"},
		{"{fd}", "3"},
		{"{addr}", "[::]:8080"},
		{"{host}", "::"},
		{"{port}", "8080"},
		{"{addr:admin}={host:admin}+{port:admin}", "127.0.0.1:9000=127.0.0.1+9000"},
		{"{addr:app.sock}", "/run/app.sock"},
		{"{fd:app.sock}{generation}", "57"},
		{"{{fd:web}", "{fd:web}"},
		{"{{fd:web}}", "{fd:web}}"},
		{"{{{fd:web}", "{{fd:web}"},
		{"{{fd:nobody}", "{fd:nobody}"},
		{"{{generation}", "{generation}"},
		{"{{port}:{port}", "{port}:8080"},
		{"{a{fd}b}", "{a3b}"},

		{"{print}", "{print}"},
		{"{print $1}", "{print $1}"},
		{`{"fd": 3, "port":{"port":80}}`, `{"fd": 3, "port":{"port":80}}`},
		{"{{.X}}", "{{.X}}"},
		{"{{ .Host }}", "{{ .Host }}"},
		{"{port: 80}", "{port: 80}"},
		{"{fd:a b}", "{fd:a b}"},
		{"{FD}", "{FD}"},
		{"{generation:web}", "{generation:web}"},
		{"{fd", "{fd"},
		{"${host}", "$::"},
		{"\xff{\xfe}", "\xff{\xfe}"},
	} {
		if got, err := h.Expand(tc.in); err != nil || got != tc.want {
			t.Errorf("Expand(%q) = %q, %v; want %q", tc.in, got, err, tc.want)
		}
	}
}

func TestExpandDoesNotExpandItsOwnResult(t *testing.T) {
	h := Handoff{Sockets: []Passed{{Name: "a", Network: "unix", Addr: "/run/{fd}", FD: 3}}}
	if got, err := h.Expand("{addr:a}"); err != nil || got != "/run/{fd}" {
		t.Errorf("Expand = %q, %v", got, err)
	}
}

func TestExpandErrors(t *testing.T) {
	full := Handoff{Sockets: threeSockets()}
	unixFirst := Handoff{Sockets: threeSockets()[2:]}
	odd := Handoff{Sockets: []Passed{{Name: "x", Network: "tcp", Addr: "nonsense"}}}
	for _, tc := range []struct {
		h    Handoff
		in   string
		want []string
	}{
		{full, "x{fd:wbe}y", []string{`cannot expand {fd:wbe}: no socket is named "wbe" (there are: web, admin, app.sock)`, "{{fd:wbe}"}},
		{full, "{fd:web} {port:8080}", []string{"{port:8080}", `"8080"`}},
		{full, "{fd:}", []string{"{fd:}", `""`}},
		{full, "{host:app.sock}", []string{`unix socket "app.sock" has no host`, "{addr:app.sock}"}},
		{unixFirst, "{port}", []string{`unix socket "app.sock" has no port`}},
		{Handoff{}, "{fd}", []string{"{fd}", "no sockets"}},
		{Handoff{}, "{fd:web}", []string{"{fd:web}", "no sockets"}},
		{odd, "{port}", []string{`"x"`, `"nonsense"`}},
	} {
		got, err := tc.h.Expand(tc.in)
		if got != "" {
			t.Errorf("Expand(%q) = %q beside an error", tc.in, got)
		}
		assertMentions(t, err, tc.want...)
	}
}

func TestCheckTemplates(t *testing.T) {
	names := []string{"web", "admin"}
	good := []string{"server", "--fd={fd:web}", "{addr}", "{port:admin}", "{{fd:nobody}", "{print}", "{generation}"}
	if err := CheckTemplates(good, names); err != nil {
		t.Error(err)
	}
	err := CheckTemplates(append(good, "{fd:wbe}"), names)
	assertMentions(t, err, `cannot expand {fd:wbe}: no socket is named "wbe" (there are: web, admin)`)
	assertMentions(t, CheckTemplates([]string{"{fd}"}, nil), "{fd}", "no sockets")
	if err := CheckTemplates([]string{"{generation}", "{}"}, nil); err != nil {
		t.Error(err)
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "{fd}", "{{fd:web}", "{fd:x", "{{.X}}", "{{{port}}}", "{generation}{", "awk '{print}'", "\xff{fd}"} {
		f.Add(s)
	}
	h := Handoff{Sockets: threeSockets(), Generation: 7}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := h.Expand(s)
		if err != nil && got != "" {
			t.Errorf("Expand(%q) = %q beside %v", s, got, err)
		}
		if !mentionsTemplate(s) && (err != nil || got != s) {
			t.Errorf("Expand(%q) = %q, %v, although there is nothing to replace", s, got, err)
		}
		// With one more brace each form stands for itself.
		escaped := escapeTemplates(h, s)
		if back, err := h.Expand(escaped); err != nil || back != s {
			t.Errorf("Expand(%q) = %q, %v; want %q", escaped, back, err, s)
		}
	})
}

// escapeTemplates puts a brace before each form. It asks Expand about every
// piece from one brace to the next closing one, alone: a piece that changes or
// fails is a form.
func escapeTemplates(h Handoff, s string) string {
	var b strings.Builder
	for i := range len(s) {
		end := strings.IndexByte(s[i:], '}') + 1
		piece := s[i : i+end]
		if out, err := h.Expand(piece); strings.LastIndexByte(piece, '{') == 0 && (err != nil || out != piece) {
			b.WriteByte('{')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mentionsTemplate looks for the beginnings of the forms.
func mentionsTemplate(s string) bool {
	for _, form := range []string{"{fd", "{addr", "{host", "{port", "{generation"} {
		if strings.Contains(s, form) {
			return true
		}
	}
	return false
}

package fdpass

import "testing"

func FuzzParseSockaddr(f *testing.F) {
	v4 := []byte{2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}
	v6 := append([]byte{10, 0, 0, 80, 0, 0, 0, 0, 0xfe, 0x80}, make([]byte, 14)...)
	for raw, want := range map[string]string{
		string(v4):                      "127.0.0.1:8080",
		string(v4) + "more":             "127.0.0.1:8080",
		string(v4[:15]):                 "",
		string(v6):                      "[fe80::]:80",
		string(v6) + "\x02\x00\x00\x00": "[fe80::%2]:80",
		string(v6[:23]):                 "",
		"\x01\x00/path":                 "",
		"\x02":                          "",
		"":                              "",
	} {
		have, ok := ParseSockaddr([]byte(raw))
		if ok != (want != "") || ok && have.String() != want {
			f.Errorf("%q is %v, %v; want %s", raw, have, ok, want)
		}
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		at, ok := ParseSockaddr(raw)
		if !ok {
			if at.IsValid() {
				t.Fatalf("%q is nothing, and yet %v", raw, at)
			}
			return
		}
		if again := addrPortOf(Binding{Addr: at}.Sockaddr()); again != at {
			t.Fatalf("%v becomes %v", at, again)
		}
	})
}

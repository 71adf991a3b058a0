package cli

import (
	"encoding/json"
	"testing"
	"time"

	"dfsd/client"
)

func TestQuote(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"plain", "plain"},
		{"/a/b-c_d.e,f+g:h@i%j=k", "/a/b-c_d.e,f+g:h@i%j=k"},
		{"ünïcode", "ünïcode"},
		{"\uFFFD", "\uFFFD"},
		{"", "''"},
		{"with space", "'with space'"},
		{"it's", `"it's"`},
		{`it's "so"`, `'it'\''s "so"'`},
		{"$HOME", "'$HOME'"},
		{"~", "'~'"},
		{"a~", "a~"},
		{"#a", "'#a'"},
		{"new\nline", `$'new\nline'`},
		{"tab\tbell\x07", `$'tab\tbell\007'`},
		{"latin-\xe9", `$'latin-\351'`},
		{"it's\n\\", `$'it\'s\n\\'`},
		{"\u202e", `$'\342\200\256'`}, // would turn the rest of the line round
	} {
		if got := quote(c.name); got != c.want {
			t.Errorf("%q: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a\nb\tc\\", "a\nb\tc\\"},
		{"\x1b[31mred\x00\xff", `\033[31mred\000\377`},
		{"ü…", "ü…"},
	} {
		if got := printable(c.in); got != c.want {
			t.Errorf("%q: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		n           int64
		text, short string
	}{
		{0, "0 B", "0"}, {1023, "1023 B", "1023"}, {1024, "1.00 KiB", "1.0K"}, {1025, "1.00 KiB", "1.1K"}, {10240, "10.0 KiB", "10K"},
		{1 << 20, "1.00 MiB", "1.0M"}, {1<<20 - 1, "1.00 MiB", "1.0M"}, {300 << 20, "300 MiB", "300M"}, {5 << 40, "5.00 TiB", "5.0T"},
		{1 << 60, "1.00 EiB", "1.0E"},
	} {
		if got := sizeText(uint64(c.n)); got != c.text {
			t.Errorf("sizeText(%d) = %q, want %q", c.n, got, c.text)
		}
		if got := shortSize(c.n); got != c.short {
			t.Errorf("shortSize(%d) = %q, want %q", c.n, got, c.short)
		}
	}
}

func TestModeText(t *testing.T) {
	for _, c := range []struct {
		typ  client.Type
		mode uint32
		want string
	}{
		{client.TypeFile, 0o644, "-rw-r--r--"}, {client.TypeDir, 0o1777, "drwxrwxrwt"}, {client.TypeSymlink, 0o777, "lrwxrwxrwx"},
		{client.TypeFile, 0, "----------"}, {client.TypeFile, 0o4755, "-rwsr-xr-x"}, {client.TypeFile, 0o6644, "-rwSr-Sr--"},
		{client.TypeDir, 0o2750, "drwxr-s---"}, {client.TypeDir, 0o1000, "d--------T"}, {99, 0o777, "?rwxrwxrwx"},
	} {
		if got := modeText(c.typ, c.mode); got != c.want {
			t.Errorf("%v %o: %s, want %s", c.typ, c.mode, got, c.want)
		}
	}
}

func TestPlural(t *testing.T) {
	for _, c := range []struct {
		n          int
		noun, want string
	}{{1, "copy", "1 copy"}, {2, "copy", "2 copies"}, {0, "file", "0 files"}, {1, "file", "1 file"}} {
		if got := plural(c.n, c.noun); got != c.want {
			t.Errorf("%d %s: %s", c.n, c.noun, got)
		}
	}
}

func TestAge(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want string
	}{{-time.Second, "0.0 s"}, {1500 * time.Millisecond, "1.5 s"}, {90 * time.Second, "90 s"}, {10 * time.Minute, "10 min"}, {3 * time.Hour, "3 h"}, {72 * time.Hour, "3 days"}} {
		if got := ageText(c.d); got != c.want {
			t.Errorf("%v: %s, want %s", c.d, got, c.want)
		}
	}
}

func TestJSONNames(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{"a\nb", `{"name":"a\nb"}`},
		{"latin-\xe9", `{"name":"latin-` + "\uFFFD" + `","name_base64":"bGF0aW4t6Q=="}`},
	} {
		b, err := json.Marshal(toJSONName(c.name))
		if err != nil || string(b) != c.want {
			t.Errorf("%q: %s, %v", c.name, b, err)
		}
	}
}

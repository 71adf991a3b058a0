package cli

import (
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// quote writes a name so that a terminal shows it and a shell reads it back: as
// it is where that works, else in quotes, and as $'…' when it holds bytes that
// cannot be printed.
func quote(name string) string {
	const special = " !\"#$&'()*;<>?[\\]^`{|}~"
	plain, clean := name != "", true
	for i, r := range name {
		if r == utf8.RuneError && !strings.HasPrefix(name[i:], "\uFFFD") || !unicode.IsPrint(r) {
			clean = false
		}
		if strings.ContainsRune(special, r) && (i == 0 || r != '#' && r != '~') {
			plain = false
		}
	}
	switch {
	case !clean:
		return "$'" + strings.ReplaceAll(escape(name, "'"), `\"`, `"`) + "'"
	case plain:
		return name
	case strings.Contains(name, "'") && !strings.ContainsAny(name, "\"$`\\!"):
		return `"` + name + `"`
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}

// brief is quote for messages: a name that no screen takes is cut in its middle.
func brief(name string) string {
	const most, head, tail = 300, 120, 60 // bytes
	if len(name) <= most {
		return quote(name)
	}
	cut := strings.ToValidUTF8(name[:head], "") + "…" + strings.ToValidUTF8(name[len(name)-tail:], "")
	return fmt.Sprintf("%s (%d bytes)", quote(cut), len(name))
}

// escape writes what cannot be printed, backslashes and the given characters
// with a backslash before them.
func escape(s, also string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\%03o`, s[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\\' || strings.ContainsRune(also, r):
			b.WriteString(`\` + string(r))
		case !unicode.IsPrint(r):
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// printable keeps messages from steering a terminal: what is no text is escaped,
// line ends stay.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == '\n' || r == '\t' || r == '\\' || unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1) {
			b.WriteString(s[i : i+n])
		} else {
			b.WriteString(escape(s[i:i+n], ""))
		}
		i += n
	}
	return b.String()
}

// terminal reports whether w is one.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// shown is a name for output on w: quoted on a terminal, raw elsewhere.
func shown(w io.Writer, name string) string {
	if terminal(w) {
		return quote(name)
	}
	return name
}

// jsonName is the name of something in JSON. The bytes of a name that is not
// UTF-8 are in NameBase64, and Name only resembles it.
type jsonName struct {
	Name       string `json:"name"`
	NameBase64 string `json:"name_base64,omitempty"`
}

func toJSONName(s string) jsonName {
	return jsonName{strings.ToValidUTF8(s, "\uFFFD"), base64Of(s)}
}

// jsonPath is jsonName for paths.
type jsonPath struct {
	Path       string `json:"path"`
	PathBase64 string `json:"path_base64,omitempty"`
}

func toJSONPath(s string) jsonPath {
	return jsonPath{strings.ToValidUTF8(s, "\uFFFD"), base64Of(s)}
}

// base64Of encodes what is not UTF-8, and nothing else.
func base64Of(s string) string {
	if utf8.ValidString(s) {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(s))
}

// sizeText is a number of bytes for people: three digits and an IEC unit.
func sizeText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "KMGTPE"
	for i := range units {
		v /= 1024
		if v < 1023.5 || i == len(units)-1 {
			prec := max(0, 2-int(math.Log10(max(v, 1))))
			return fmt.Sprintf("%.*f %ciB", prec, v, units[i])
		}
	}
	return ""
}

// shortSize is sizeText as ls -h and du -h have it: 1.5K, 20M.
func shortSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d", n)
	}
	v, units := float64(n), "KMGTPE"
	for i := range units {
		v /= 1024
		if v < 9.95 {
			return fmt.Sprintf("%.1f%c", math.Ceil(v*10)/10, units[i])
		}
		if v < 1023.5 || i == len(units)-1 {
			return fmt.Sprintf("%.0f%c", math.Ceil(v), units[i])
		}
	}
	return ""
}

// rateText is bytes in a time, in MB/s.
func rateText(n int64, took time.Duration) string {
	return fmt.Sprintf("%.1f MB/s", float64(n)/1e6/max(took.Seconds(), 1e-9))
}

// timeText is a time as dfsd stat prints it and GNU stat does.
func timeText(t time.Time) string { return t.Format("2006-01-02 15:04:05.000000000 -0700") }

// ageText is how long something has been, for people.
func ageText(d time.Duration) string {
	switch d = max(d, 0); {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

// plural is a number with its noun.
func plural[N int | int64 | uint32 | uint64](n N, noun string) string {
	switch {
	case n == 1:
		return fmt.Sprintf("1 %s", noun)
	case strings.HasSuffix(noun, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(noun, "y"))
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

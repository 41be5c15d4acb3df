package buildlog

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/monochromegane/cargo/build"
)

func appendHead[T ~string | ~[]byte](b []byte, id build.ID, level slog.Level, msg T, now time.Time) []byte {
	b = append(b, `{"build_id":`...)
	b = appendString(b, string(id))
	b = append(b, `,"level":`...)
	b = appendString(b, strings.ToLower(level.String()))
	b = append(b, `,"msg":`...)
	b = appendString(b, msg)
	b = append(b, `,"time":"`...)
	b = now.AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

func appendEnd(b []byte, cut int64) []byte {
	if cut > 0 {
		b = append(b, `,"cut_bytes":`...)
		b = strconv.AppendInt(b, cut, 10)
	}
	return append(b, "}\n"...)
}

func appendAttr(b []byte, a slog.Attr, limit int) []byte {
	if a.Equal(slog.Attr{}) {
		return b
	}
	b = append(b, ',')
	b = appendString(b, a.Key)
	b = append(b, ':')
	return appendValue(b, a.Value.Resolve(), limit)
}

func appendValue(b []byte, v slog.Value, limit int) []byte {
	switch v.Kind() {
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		if f := v.Float64(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return strconv.AppendFloat(b, f, 'g', -1, 64)
		}
	case slog.KindTime:
		b = append(b, '"')
		b = v.Time().AppendFormat(b, time.RFC3339Nano)
		return append(b, '"')
	case slog.KindGroup:
		b = append(b, '{')
		for i, a := range v.Group() {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, a.Key)
			b = append(b, ':')
			b = appendValue(b, a.Value.Resolve(), limit)
		}
		return append(b, '}')
	case slog.KindAny:
		return appendAny(b, v.Any(), limit)
	}
	text, _ := cutText(v.String(), limit)
	return appendString(b, text)
}

// appendAny is for errors, which become text, and for what JSON can express.
func appendAny(b []byte, v any, limit int) []byte {
	var text string
	if err, ok := v.(error); ok {
		text = err.Error()
	} else if data, err := json.Marshal(v); err == nil && len(data) <= limit {
		return append(b, data...)
	} else {
		text = fmt.Sprint(v)
	}
	text, _ = cutText(text, limit)
	return appendString(b, text)
}

// appendString appends s as a JSON string in which every control character,
// C1 ones included, is escaped: a log is read on terminals.
func appendString[T ~string | ~[]byte](b []byte, s T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		r, size := rune(c), 1
		if c >= utf8.RuneSelf {
			r, size = utf8.DecodeRuneInString(string(s[i:min(len(s), i+utf8.UTFMax)]))
			if r >= 0xa0 && r != utf8.RuneError && r != '\u2028' && r != '\u2029' || size == 3 && r == utf8.RuneError {
				i += size
				continue
			}
		}
		b = append(b, s[start:i]...)
		switch r {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default: // U+FFFD stands for a byte that is not UTF-8
			b = append(b, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		}
		i += size
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

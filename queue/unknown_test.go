package queue

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/build"
)

// newer is what a program of the same record version might add to a record.
func newer(t testing.TB, b build.Build) []byte {
	t.Helper()
	text := object(t, record{Version: recordVersion, Build: b, Caller: "c"})
	text["priority"], text["tags"] = 3.0, []any{"x", map[string]any{"y": nil}}
	text["build"].(map[string]any)["trace"] = map[string]any{"id": "7", "build": true}
	text["build"].(map[string]any)["big"] = json.Number("12345678901234567890")
	data, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// object is v as JSON has it.
func object(t testing.TB, v any) map[string]any {
	t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return m
}

func mustDecode(t testing.TB, data []byte) record {
	t.Helper()
	r, err := decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustEncode(t testing.TB, r record) []byte {
	t.Helper()
	data, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// kept fails the test unless what newer added stands in text.
func kept(t *testing.T, when string, text map[string]any) {
	t.Helper()
	b := text["build"].(map[string]any)
	got := []any{text["priority"], text["tags"], b["trace"], b["big"]}
	want := []any{json.Number("3"), []any{"x", map[string]any{"y": nil}}, map[string]any{"id": "7", "build": true}, json.Number("12345678901234567890")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s, unknown fields (-want +got):\n%s", when, diff)
	}
}

// A build goes through every change that a program can make to its record.
func TestUnknownFieldsAreKept(t *testing.T) {
	q := openTest(t, 0)
	b := testBuild()
	b.State, b.AcceptedAt = build.Queued, time.Now().UTC()
	key := b.Digest()
	if _, err := q.store.live.Put(t.Context(), key, newer(t, b)); err != nil {
		t.Fatal(err)
	}
	stored := func() map[string]any {
		e, err := q.store.live.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		return object(t, e.Value())
	}
	c, err := q.Claim(t.Context()) // waits for the watch to bring it
	if err != nil {
		t.Fatal(err)
	}
	kept(t, "claimed", stored())
	if err := c.Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept(t, "renewed", stored())
	if err := c.Requeue(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := stored()
	kept(t, "queued again", text)
	for _, gone := range []string{"worker", "claim"} {
		if v, ok := text[gone]; ok {
			t.Errorf("%s = %v in the record of a queued build", gone, v)
		}
	}
	if v, ok := text["build"].(map[string]any)["started_at"]; ok {
		t.Errorf("started_at = %v in the record of a queued build", v)
	}

	if c, err = q.Claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := c.Build()
	done.State = build.Succeeded
	if err := c.Finish(t.Context(), done); err != nil {
		t.Fatal(err)
	}
	data, _, err := q.store.ended.get(t.Context(), string(b.ID))
	if err != nil {
		t.Fatal(err)
	}
	text = object(t, data)
	kept(t, "ended", text)
	if v, ok := text["caller"]; ok {
		t.Errorf("caller = %v in the record of an ended build", v)
	}
}

// What a newer program noted of an artifact or a phase goes when that goes.
func TestUnknownFieldsOfWhatIsReplaced(t *testing.T) {
	const text = `{"v":1,"build":{"build_id":"x","artifact":{"name":"a","size":1,"sha256":"s","signature":{"by":"k"}},"phases":[{"name":"fetch","seconds":1,"bytes":7}]},"new":1}`
	r := mustDecode(t, []byte(text))
	if r.Build.Artifact.Name != "a" || r.Build.Phases[0].Seconds != 1 {
		t.Fatalf("decoded: %+v", r.Build)
	}
	read := object(t, []byte(text))["build"].(map[string]any)
	written := func() map[string]any { return object(t, mustEncode(t, r))["build"].(map[string]any) }

	r.Build.State = build.Succeeded
	got := written()
	if diff := cmp.Diff([]any{read["artifact"], read["phases"]}, []any{got["artifact"], got["phases"]}); diff != "" {
		t.Errorf("left as they were (-want +got):\n%s", diff)
	}
	r.Build.Artifact = &build.Artifact{Name: "b", Size: 1, SHA256: "s"}
	r.Build.Phases = append(r.Build.Phases, build.Phase{Name: build.PhasePlan})
	got = written()
	if got["artifact"].(map[string]any)["signature"] != nil || got["phases"].([]any)[0].(map[string]any)["bytes"] != nil {
		t.Errorf("another artifact and other phases have notes of the old ones: %v", got)
	}
	r.Build.Artifact, r.Build.Phases = nil, nil
	got = written()
	if got["artifact"] != nil || got["phases"] != nil {
		t.Errorf("what was taken out came back: %v", got)
	}
}

// encoding/json reads a known name in any case; what it read so must not come
// back from the old text.
func TestKnownFieldsInAnotherCase(t *testing.T) {
	r := mustDecode(t, []byte(`{"V":1,"new":1,"BUILD":{"State":"queued","new":1}}`))
	if r.Build.State != build.Queued {
		t.Fatalf("decoded: %+v", r)
	}
	r.Build.State = build.Running
	data := mustEncode(t, r)
	if got := mustDecode(t, data); got.Build.State != build.Running || len(got.extra.members)+len(got.extra.inside["build"].members) != 2 {
		t.Errorf("%s", data)
	}
}

// The names that this program knows are those that encoding/json writes: one
// too few would write a field twice, one too many would lose a newer program's.
func TestKnownFields(t *testing.T) {
	r := record{}
	fill(reflect.ValueOf(&r).Elem())
	text := object(t, r)
	for _, tc := range []struct {
		name    string
		known   fields
		written map[string]any
	}{
		{"record", recordFields(), text},
		{"build", recordFields()["build"].inside, text["build"].(map[string]any)},
	} {
		want, got := slices.Sorted(maps.Keys(tc.written)), slices.Sorted(maps.Keys(tc.known))
		if diff := cmp.Diff(want, got); diff != "" || len(got) == 0 {
			t.Errorf("fields of a %s (-written +known):\n%s", tc.name, diff)
		}
	}
	data := mustEncode(t, r)
	if got := mustDecode(t, data); got.extra != nil {
		t.Errorf("a record with every field set has unknown ones: %+v", got.extra)
	}
}

// fill gives every exported field a value that is not its zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic("a field of kind " + v.Kind().String())
	}
}

func TestRecordsAreBounded(t *testing.T) {
	nested := func(levels int) string {
		return `{"v":1,"x":` + strings.Repeat("[", levels-1) + `"]"` + strings.Repeat("]", levels-1) + `}`
	}
	for name, tc := range map[string]struct {
		text string
		ok   bool
	}{
		"deep":       {nested(maxRecordDepth), true},
		"too deep":   {nested(maxRecordDepth + 1), false},
		"long":       {`{"v":1,"x":"` + strings.Repeat("x", maxRecordBytes-14) + `"}`, true},
		"too long":   {`{"v":1,"x":"` + strings.Repeat("x", maxRecordBytes-13) + `"}`, false},
		"two values": {`{"v":1} {}`, false},
		"half":       {`{"v":1,"x":`, false},
	} {
		if r, err := decode([]byte(tc.text)); (err == nil) != tc.ok {
			t.Errorf("%s: decode = %v", name, err)
		} else if name == "deep" && object(t, mustEncode(t, r))["x"] == nil {
			t.Errorf("%s: encoded as %s", name, mustEncode(t, r))
		}
	}

	r := record{Build: testBuild()}
	r.Build.Message = strings.Repeat("ü", maxRecordBytes)
	if got := mustDecode(t, mustEncode(t, r)).Build.Message; !strings.HasPrefix(r.Build.Message, strings.TrimSuffix(got, "...")) || len(got) > maxMessage+3 || len(got) < maxMessage {
		t.Errorf("a long message became one of %d bytes, %.20q...%q", len(got), got, got[len(got)-10:])
	}
	r.Build.Version = strings.Repeat("v", maxRecordBytes)
	if data, err := r.encode(); err == nil {
		t.Errorf("encoded a record of %d bytes", len(data))
	}
}

// Whatever can be read can be written, means the same then, and has lost nothing.
func FuzzRecord(f *testing.F) {
	b := testBuild()
	b.Phases, b.Artifact = []build.Phase{{Name: build.PhaseFetch}}, &build.Artifact{Name: "a"}
	f.Add(newer(f, b))
	f.Add([]byte(`{"v":1,"build":{"Build_ID":"x","artifact":{"name":"a","y":[1]},"phases":[{"z":0}],"q":{}},"BUILD2":null,"<":"\u0000"}`))
	f.Add([]byte(`{"build":{"build":{"build":{}}},"build":null,"x":1,"x":2}`))
	f.Add([]byte(`{"build":{"started_at":"2026-01-02T03:04:05Z","exit_status":null,"artifact":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, err := decode(data)
		if err != nil {
			return
		}
		text, err := first.encode()
		if err != nil {
			return // escaping made it larger than it may be
		}
		again := mustDecode(t, text)
		first.Version, again.rev = recordVersion, first.rev
		if len(first.Build.Message) > maxMessage {
			return
		}
		if diff := cmp.Diff(clean(t, first), clean(t, again)); diff != "" {
			t.Fatalf("decoded again (-want +got):\n%s", diff)
		}
		if string(data) == "null" || first.extra == nil {
			return
		}
		before, after := object(t, data), object(t, text)
		unchanged(t, recordFields(), before, after)
		for name := range before {
			if name != "build" && strings.EqualFold(name, "build") {
				return // two objects that make one build; the later one's fields are kept
			}
		}
		if b, ok := before["build"].(map[string]any); ok {
			unchanged(t, recordFields()["build"].inside, b, after["build"].(map[string]any))
		}
	})
}

// unchanged fails the test unless what is not known stands in after as in before.
func unchanged(t *testing.T, known fields, before, after map[string]any) {
	t.Helper()
	for name, v := range before {
		if _, ok := known.find(name); ok {
			continue
		}
		if diff := cmp.Diff(v, after[name]); diff != "" {
			t.Errorf("%q (-read +written):\n%s", name, diff)
		}
	}
}

// clean is what this program knows of r.
func clean(t *testing.T, r record) string {
	r.extra = nil
	return string(mustEncode(t, r))
}

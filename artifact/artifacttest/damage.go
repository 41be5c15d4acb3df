package artifacttest

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/build"
)

// edit changes the record of version.
func (r *run) edit(version string, change func(map[string]any)) {
	r.Helper()
	slot := Key(version).Slot()
	var fields map[string]any
	if err := json.Unmarshal(r.Text(r.T, slot), &fields); err != nil {
		r.Fatal(err)
	}
	change(fields)
	text, err := json.Marshal(fields)
	if err != nil {
		r.Fatal(err)
	}
	r.Record(r.T, slot, text)
}

// What cannot be served is not found, by whoever looks it up now or did before,
// and the next Put mends it.
func testCorrupt(r *run) {
	slot := Key("v1").Slot()
	r.put(meta("v2", build.NewID(), 1), "other")
	for name, damage := range map[string]func(sum string){
		"blob missing":  func(sum string) { r.Blob(r.T, sum, nil) },
		"blob cut":      func(sum string) { r.Blob(r.T, sum, []byte("he")) },
		"record cut":    func(string) { r.Record(r.T, slot, r.Text(r.T, slot)[:40]) },
		"record empty":  func(string) { r.Record(r.T, slot, []byte{}) },
		"other's place": func(string) { r.Record(r.T, slot, r.Text(r.T, Key("v2").Slot())) },
		"newer version": func(string) { r.edit("v1", func(f map[string]any) { f["version"] = 99 }) },
		"digest is a path": func(string) {
			r.edit("v1", func(f map[string]any) { f["artifact"].(map[string]any)["sha256"] = "../meta/" + slot + ".json" })
		},
	} {
		before := r.put(meta("v1", build.NewID(), 1), "hello")
		damage(digest("hello"))
		_, err := r.Store.Lookup(r.Context(), slot)
		r.missing(name, err, true)
		if strings.HasPrefix(name, "blob") {
			r.missing(name+": Verify", r.Store.Verify(r.Context(), before), true)
			_, err = r.Store.Open(r.Context(), before)
			r.missing(name+": Open", err, true)
		}
		r.put(meta("v1", build.NewID(), 1), "hello")
		r.holds("v1", "hello")
	}
}

func testCorruptContent(r *run) {
	m := r.put(meta("v1", build.NewID(), 1), "hello")
	r.Blob(r.T, m.Artifact.SHA256, []byte("jello"))
	r.missing("Verify", r.Store.Verify(r.Context(), m), true)
	r.put(meta("v1", build.NewID(), 1), "hello")
	r.holds("v1", "hello")
}

// A record as the first version wrote it.
func testOldRecord(r *run) {
	m := r.put(meta("v1", build.NewID(), 2), "hello")
	r.edit("v1", func(f map[string]any) {
		for _, later := range []string{"ref", "accepted_at", "started_at", "executor", "attempt"} {
			delete(f, later)
		}
	})
	want := m
	want.RefName, want.AcceptedAt, want.StartedAt, want.Executor, want.Attempt = "", time.Time{}, time.Time{}, "", 0
	r.equal("Lookup", want, r.lookup("v1"))
	r.put(meta("v1", m.BuildID, 1), "again")
	r.holds("v1", "again")
}

func testUnknownFields(r *run) {
	m := r.put(meta("v1", build.NewID(), 2), "hello")
	r.edit("v1", func(f map[string]any) { f["signature"] = map[string]any{"a": 1} })
	r.equal("Lookup", m, r.lookup("v1"))
}

func testMetas(r *run) {
	var want []artifact.Meta
	for _, v := range []string{"v1", "v2", "v3"} {
		want = append(want, r.put(meta(v, build.NewID(), 1), v))
	}
	list := func() (got []artifact.Meta, broken []string) {
		for m, err := range r.Store.Metas(r.Context()) {
			switch {
			case errors.Is(err, artifact.ErrCorrupt):
				broken = append(broken, err.Error())
			case err != nil:
				r.Fatal(err)
			default:
				got = append(got, m)
			}
		}
		return got, broken
	}
	sorted := func(a, b artifact.Meta) int { return strings.Compare(a.Key.Slot(), b.Key.Slot()) }
	slices.SortFunc(want, sorted)
	got, broken := list()
	r.equal("Metas", want, got)
	if len(broken) > 0 {
		r.Errorf("Metas = %q", broken)
	}

	first := want[0]
	r.Record(r.T, first.Key.Slot(), []byte("{"))
	got, broken = list()
	r.equal("Metas with one that is corrupt", want[1:], got)
	if len(broken) != 1 || !strings.Contains(broken[0], first.Key.Slot()) {
		r.Errorf("Metas = %q, want one error that names %s", broken, first.Key.Slot())
	}
	for range r.Store.Metas(r.Context()) {
		break // whoever has seen enough
	}
	r.put(first, first.Key.Version) // or its archive is left without a name
}

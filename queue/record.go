package queue

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/monochromegane/cargo/build"
)

// recordVersion is the newest form of a record that this program may change.
// A field that an older program may ignore does not raise it.
const recordVersion = 1

// maxMessage bounds build.Build.Message. It is one sentence; an error that
// quotes what a remote sent may make it longer, which must not make a record
// that cannot be stored.
const maxMessage = 4 << 10

// A record is what is stored of a build. Fields that this program does not
// know, of a program with the same recordVersion, are kept in what it changes.
type record struct {
	Version int         `json:"v"`
	Build   build.Build `json:"build"`
	Caller  string      `json:"caller,omitempty"` // whose limit it counts for; gone once it is in "ended"
	Sealed  bool        `json:"sealed,omitempty"` // a token of this build is in the stream "tokens"
	Worker  string      `json:"worker,omitempty"` // who holds the claim
	Claim   string      `json:"claim,omitempty"`  // names this one claim; kept when its worker finishes
	Cancel  bool        `json:"cancel,omitempty"` // the worker is asked to stop
	Lost    int         `json:"lost,omitempty"`   // workers that died under it
	Again   int         `json:"again,omitempty"`  // times that an operator queued it after its end

	rev   uint64   // the revision that it is or was in "live"
	extra *unknown // nil in nearly every record
}

func (r record) encode() ([]byte, error) {
	r.Version = recordVersion
	if len(r.Build.Message) > maxMessage {
		r.Build.Message = strings.ToValidUTF8(r.Build.Message[:maxMessage], "") + "..."
	}
	data, err := json.Marshal(r)
	if err == nil && r.extra != nil {
		data, err = r.extra.restore(data)
	}
	if err == nil {
		err = tooLarge(data) // what is stored can be read again
	}
	if err != nil {
		return nil, fmt.Errorf("encode the record of build %s: %w", r.Build.ID, err)
	}
	return data, nil
}

func decode(data []byte) (record, error) {
	var r record
	err := tooLarge(data)
	if err == nil && decodeStrict(data, &r) != nil {
		r, err = decodeNewer(data)
	}
	if err != nil {
		return record{}, fmt.Errorf("decode a build's record: %w", err)
	}
	return r, nil
}

// decodeNewer is decode for text with fields that this program does not know.
func decodeNewer(data []byte) (r record, err error) {
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	if !shallow(data, maxRecordDepth) {
		return record{}, fmt.Errorf("it is nested deeper than %d levels", maxRecordDepth)
	}
	r.extra, err = unknownOf(data, recordFields())
	return r, err
}

// retired is what stays of r in "ended".
func (r record) retired() record { return record{Build: r.Build, Again: r.Again, extra: r.extra} }

// supersedes reports whether r tells of a later end of the build than former.
func (r record) supersedes(former record) bool {
	return cmp.Or(cmp.Compare(r.Again, former.Again), cmp.Compare(r.Build.Attempt, former.Build.Attempt)) > 0
}

var errForeign = errors.New("its record was written by a newer version of Cargo")

// foreign reports whether a newer program wrote r: it is shown, not touched.
func (r record) foreign() bool { return r.Version > recordVersion }

func (r *record) end(s build.State, reason build.Reason, message string) {
	r.Build.State, r.Build.Reason, r.Build.Message = s, reason, message
	r.Build.FinishedAt = time.Now().UTC()
}

func (r *record) cancel() { r.end(build.Canceled, "", "canceled on request") }

// giveBack makes a running build queued again, or ends it if somebody asked
// for that meanwhile.
func (r *record) giveBack() {
	r.Worker, r.Claim = "", ""
	if r.Cancel {
		r.cancel()
		return
	}
	r.Build.State = build.Queued
	r.Build.StartedAt = time.Time{}
}

// lose is giveBack for a build whose worker died.
func (r *record) lose() {
	r.Lost++
	r.giveBack()
	if r.Build.State == build.Queued && r.Lost >= maxLost {
		r.end(build.Failed, build.ReasonLost, fmt.Sprintf("%d workers died while they built it; ask for it again by POST", r.Lost))
	}
}

package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/monochromegane/cargo/build"
)

// Meta is what a store knows of the newest artifact of a slot. It is enough to
// make the record of its build again. The times and what follows are zero in
// what was stored before they were recorded.
type Meta struct {
	Key        build.Key      `json:"key"`
	Public     bool           `json:"public"`
	CommitTime time.Time      `json:"commit_time"`
	Artifact   build.Artifact `json:"artifact"`
	BuildID    build.ID       `json:"build_id"`
	CreatedAt  time.Time      `json:"created_at"`

	RefName    string    `json:"ref,omitempty"`
	AcceptedAt time.Time `json:"accepted_at,omitzero"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	Executor   string    `json:"executor,omitempty"`
	Attempt    int       `json:"attempt,omitempty"`
}

// Supersedes reports whether m is of a later attempt of the build that other
// is of.
func (m Meta) Supersedes(other Meta) bool {
	return m.BuildID == other.BuildID && m.Attempt > other.Attempt
}

// Build is the record of the build that made it, as far as the store knows.
func (m Meta) Build() build.Build {
	b := build.Build{
		ID: m.BuildID, Key: m.Key, RefName: m.RefName, Public: m.Public, State: build.Succeeded, Message: "Your build succeeded.",
		AcceptedAt: m.AcceptedAt, StartedAt: m.StartedAt, FinishedAt: m.CreatedAt, Artifact: &m.Artifact, Executor: m.Executor, Attempt: m.Attempt,
	}
	if b.AcceptedAt.IsZero() {
		b.AcceptedAt = m.CreatedAt
	}
	return b
}

// record is the form in which a slot is stored. Fields that it does not know
// are left alone by a reader; a change that such a reader would misunderstand
// needs another version.
type record struct {
	Version int `json:"version"`
	Meta
}

const recordVersion = 1

// MaxRecord is how much of a slot's record a store reads.
const MaxRecord = 64 << 10 // bytes

// EncodeRecord is the text that every store keeps for a slot.
func EncodeRecord(m Meta) ([]byte, error) {
	text, err := json.MarshalIndent(record{recordVersion, m}, "", "\t")
	return append(text, '\n'), err
}

// DecodeRecord reads what EncodeRecord wrote for a slot. What is no such text
// is ErrCorrupt.
func DecodeRecord(slot string, text []byte) (Meta, error) {
	r, err := parseRecord(slot, text)
	if err != nil {
		return Meta{}, err
	}
	return r.of(slot)
}

// parseRecord returns a record of any version that may belong to any slot.
func parseRecord(slot string, text []byte) (record, error) {
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return record{}, corrupt("the record of slot %s: %v", slot, err)
	}
	return r, nil
}

// of returns what the record says of slot, if it is one of that slot.
func (r record) of(slot string) (Meta, error) {
	if r.Version != recordVersion || r.Key.Slot() != slot || !IsDigest(r.Artifact.SHA256) {
		return Meta{}, corrupt("slot %s holds a record that is not its own", slot)
	}
	return r.Meta, nil
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// IsDigest reports whether s is 64 lower-case hex digits, which also makes it
// a safe file name.
func IsDigest(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

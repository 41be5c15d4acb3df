package build

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// An ID names one build: 32 lower-case hex digits from crypto/rand.
type ID string

// NewID returns a fresh ID that nobody can guess.
func NewID() ID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return ID(hex.EncodeToString(b[:]))
}

// Valid reports whether id has the form of an ID.
func (id ID) Valid() bool {
	if len(id) != 32 {
		return false
	}
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// A State is where a build stands.
//
//	queued -> running -> succeeded | failed | canceled
//	running -> queued, when its worker is lost
type State string

// The states.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Canceled  State = "canceled"
)

// States are all states there are.
var States = []State{Queued, Running, Succeeded, Failed, Canceled}

// Ended reports whether s is final.
func (s State) Ended() bool { return s == Succeeded || s == Failed || s == Canceled }

// A Reason says why a build failed. The set is closed: it is a metric label.
type Reason string

// The reasons.
const (
	ReasonExit             Reason = "exit"               // the command exited with a status other than 0
	ReasonTimeout          Reason = "timeout"            // it took longer than --build-timeout
	ReasonOutOfMemory      Reason = "out_of_memory"      // the kernel killed a process at --memory
	ReasonTooManyProcesses Reason = "too_many_processes" // the kernel refused a process at --pids
	ReasonDiskFull         Reason = "disk_full"          // it used up --disk
	ReasonLogTooLarge      Reason = "log_too_large"      // it wrote more than --log-limit
	ReasonSource           Reason = "source"             // the source cannot be fetched or made sense of
	ReasonNoArtifact       Reason = "no_artifact"        // it made nothing
	ReasonWrongPlatform    Reason = "wrong_platform"     // what it made is for another platform
	ReasonArtifactTooLarge Reason = "artifact_too_large" // it made more than --artifact-limit
	ReasonLost             Reason = "lost"               // three workers died under it
	ReasonInternal         Reason = "internal"           // our fault
)

// Reasons are all reasons there are.
var Reasons = []Reason{
	ReasonExit, ReasonTimeout, ReasonOutOfMemory, ReasonTooManyProcesses, ReasonDiskFull, ReasonLogTooLarge,
	ReasonSource, ReasonNoArtifact, ReasonWrongPlatform, ReasonArtifactTooLarge, ReasonLost, ReasonInternal,
}

// A Build is the record of one build, and its JSON form is what the API shows.
type Build struct {
	ID ID `json:"build_id"`
	Key
	RefName string `json:"ref"` // full name of the ref that Version meant, such as refs/tags/v1.0.0
	Public  bool   `json:"public"`

	State    State  `json:"state"`
	Reason   Reason `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"` // one sentence for people
	ExitCode *int   `json:"exit_status,omitempty"`

	AcceptedAt time.Time `json:"accepted_at"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`

	Phases   []Phase   `json:"phases,omitempty"`
	Artifact *Artifact `json:"artifact,omitempty"`
	Executor string    `json:"executor,omitempty"` // containerd or docker
	Attempt  int       `json:"attempt,omitempty"`  // how often a worker has claimed it
}

// Result is the metric label of an ended build: succeeded, canceled or its reason.
func (b Build) Result() string {
	if b.State == Failed {
		return string(b.Reason)
	}
	return string(b.State)
}

// A Phase is one timed part of a build.
type Phase struct {
	Name    PhaseName `json:"name"`
	Seconds float64   `json:"seconds"`
}

// A PhaseName is from a closed set: it is a metric label.
type PhaseName string

// The phases, in the order in which a build goes through them.
const (
	PhaseFetch   PhaseName = "fetch"   // resolve again and write the tree
	PhasePlan    PhaseName = "plan"    // choose the recipe
	PhaseMount   PhaseName = "mount"   // lay out modules and what was compiled before
	PhaseBuild   PhaseName = "build"   // run it in containers
	PhaseCollect PhaseName = "collect" // find what it made
	PhaseStore   PhaseName = "store"   // pack and keep it
)

// Phases are all phases there are.
var Phases = []PhaseName{PhaseFetch, PhasePlan, PhaseMount, PhaseBuild, PhaseCollect, PhaseStore}

// An Artifact is the archive that a build made.
type Artifact struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // hex digits
}

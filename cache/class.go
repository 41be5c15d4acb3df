package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// A Work is what the cache must know of a build.
type Work struct {
	Toolchain  Toolchain // which go command
	Platform   Platform  // what it builds for
	Repository string    // remote/owner/repo
	Public     bool      // everybody may read the repository
	RunsCode   bool      // code of the repository runs in the build, as make does; else it is go build with cgo off and arguments of Cargo's alone
	Assembles  bool      // the repository has a say in what the assembler reads, which the go command's keys do not tell
}

// A Toolchain is a GOVERSION, such as go1.26.8, as the image's go command says
// it. Two toolchains never share what they compiled.
type Toolchain string

// A Platform is what the standard library is compiled for.
type Platform struct {
	GOOS, GOARCH string
	Variant      string // GOAMD64=v1 and the like, "" for none
	Cgo          bool
}

// String returns a platform as linux/amd64, with variant and cgo where set.
func (p Platform) String() string {
	s := p.GOOS + "/" + p.GOARCH
	if p.Variant != "" {
		s += " " + p.Variant
	}
	if p.Cgo {
		s += " cgo"
	}
	return s
}

// A Kind says who may have written the layers of a class.
type Kind string

// The kinds of class.
const (
	KindStandard   Kind = "standard"   // Cargo, with no repository in reach
	KindShared     Kind = "shared"     // builds of public repositories in which no code of theirs ran or was assembled
	KindRepository Kind = "repository" // any build of one repository
)

// A Class names a list of layers. Equal classes are the same list. The zero
// value names none.
type Class struct {
	kind       Kind
	toolchain  Toolchain
	platform   Platform // of KindStandard only
	repository string   // of KindRepository only
	public     bool     // of KindRepository only
}

// Standard returns the class of the prepared standard library.
func Standard(t Toolchain, p Platform) Class {
	return Class{kind: KindStandard, toolchain: t, platform: p}
}

// Appends returns the one class that a build may append to. It is the trust
// rule of the cache: nobody can tell whether an entry is right short of
// compiling it again, so whoever appends to a class owns what every reader of
// it builds. What a repository's code may have written stays with that
// repository, and so does what is not everybody's to read, and a build whose
// entries may differ from those of an honest build with the same keys.
func (w Work) Appends() Class {
	if w.Public && !w.RunsCode && !w.Assembles {
		return w.shared()
	}
	return w.own()
}

// Reads returns the classes that a build may read, in order of lookup.
func (w Work) Reads() []Class {
	standard := Standard(w.Toolchain, w.Platform)
	if own := w.Appends(); own != w.shared() {
		return []Class{own, w.shared(), standard}
	}
	return []Class{w.shared(), standard}
}

func (w Work) shared() Class { return Class{kind: KindShared, toolchain: w.Toolchain} }

// own has the visibility in it: what was cached while a repository was private
// is out of reach once it is public, and what anybody could make it cache
// while it was public is out of reach once it is private.
func (w Work) own() Class {
	return Class{kind: KindRepository, toolchain: w.Toolchain, repository: w.Repository, public: w.Public}
}

// String describes a class to people.
func (c Class) String() string {
	switch c.kind {
	case KindStandard:
		return fmt.Sprintf("standard library of %s for %s", c.toolchain, c.platform)
	case KindShared:
		return fmt.Sprintf("shared class of %s", c.toolchain)
	case KindRepository:
		visibility := "private"
		if c.public {
			visibility = "public"
		}
		return fmt.Sprintf("class of %s (%s) with %s", c.repository, visibility, c.toolchain)
	}
	return "no class"
}

// readable reports whether what c holds may be copied into a layer of to,
// because each build that appends to the one reads the other.
func (c Class) readable(to Class) bool {
	switch {
	case c == to:
		return true
	case c.toolchain != to.toolchain:
		return false
	case c.kind == KindStandard:
		return to.kind != KindStandard
	default:
		return c.kind == KindShared && to.kind == KindRepository
	}
}

// key names the list's file.
func (c Class) key() string {
	sum := sha256.Sum256(c.text())
	return hex.EncodeToString(sum[:keySize/2])
}

const keySize = 32 // hex digits

func (c Class) text() []byte {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings and booleans always have a form
	}
	return text
}

// classForm is a class in a list's file.
type classForm struct {
	Kind       Kind      `json:"kind"`
	Toolchain  Toolchain `json:"toolchain"`
	GOOS       string    `json:"goos,omitempty"`
	GOARCH     string    `json:"goarch,omitempty"`
	Variant    string    `json:"variant,omitempty"`
	Cgo        bool      `json:"cgo,omitempty"`
	Repository string    `json:"repository,omitempty"`
	Public     bool      `json:"public,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (c Class) MarshalJSON() ([]byte, error) {
	p := c.platform
	return json.Marshal(classForm{c.kind, c.toolchain, p.GOOS, p.GOARCH, p.Variant, p.Cgo, c.repository, c.public})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (c *Class) UnmarshalJSON(text []byte) error {
	var f classForm
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	switch f.Kind {
	case KindStandard, KindShared, KindRepository:
	default:
		return fmt.Errorf("a class of the unknown kind %q", f.Kind)
	}
	*c = Class{f.Kind, f.Toolchain, Platform{f.GOOS, f.GOARCH, f.Variant, f.Cgo}, f.Repository, f.Public}
	return nil
}

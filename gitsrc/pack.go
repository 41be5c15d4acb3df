package gitsrc

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

const (
	// heldBytes is how much of a pack's content is kept in memory, unpacked;
	// the rest is read from the pack's file again when it is needed.
	heldBytes = 64 << 20

	// maxWholeBytes bounds an object that must be in memory as a whole: a
	// commit, a tag, a tree, and both sides of a delta. Files that are sent
	// as they are do not count.
	maxWholeBytes = 64 << 20

	// moreObjects is how many objects a pack may hold beside one for each
	// entry of the tree: the commit, the root tree and a chain of tags.
	moreObjects = 16
)

// An object is one entry of a pack.
type object struct {
	id     plumbing.Hash // zero until it is resolved
	kind   plumbing.ObjectType
	size   int64 // unpacked; of the instructions for an unresolved delta
	offset int64 // in the pack's file
	crc    uint32

	delta     bool
	base      *object // of a delta, once known
	baseID    plumbing.Hash
	depth     int
	entrySize int64  // unpacked size of what stands in the pack: content or delta
	entry     []byte // that, if it is held
	content   []byte // of a resolved delta, if it is held
}

// A pack is what one fetch received: all objects of one commit. Its bytes are
// in a file; it is not safe for concurrent use.
type pack struct {
	limits   Limits
	objects  []*object
	byID     map[plumbing.Hash]*object
	checksum plumbing.Hash
	again    *packfile.Scanner // over the file
	unpacked int64
	held     int64
}

// readPack copies the pack that r is to file, checks it, and learns what is in
// it. Sizes are checked before anything is unpacked. file must stay open while
// the pack is used; ctx ends all reading, later too.
func readPack(ctx context.Context, r io.Reader, file *os.File, limits Limits) (*pack, error) {
	p := &pack{limits: limits, byID: make(map[plumbing.Hash]*object)}
	w := bufio.NewWriterSize(file, 64<<10)
	scanErr := p.scan(ctx, io.TeeReader(r, w))
	if err := w.Flush(); err != nil { // also what scan stopped for, if the disk is full
		return nil, err
	}
	if scanErr != nil {
		return nil, scanErr
	}
	if err := p.checkEnd(file); err != nil {
		return nil, err
	}
	p.again = packfile.NewScanner(&fileReader{ctx, file})
	return p, p.resolveDeltas(ctx)
}

// checkEnd refuses bytes after the pack.
func (p *pack) checkEnd(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	var last plumbing.Hash
	if _, err := file.ReadAt(last[:], info.Size()-int64(len(last))); err != nil {
		return err
	}
	if last != p.checksum {
		return broken("something follows its end")
	}
	return nil
}

func broken(what string) error {
	return refuse("the git host sent a broken pack: %s", what)
}

// scan reads a pack from its first byte to its checksum.
func (p *pack) scan(ctx context.Context, r io.Reader) error {
	scanner := packfile.NewScanner(&contextReader{ctx, r})
	_, count, err := scanner.Header()
	if err != nil {
		return err
	}
	if int64(count) > int64(p.limits.Files)+moreObjects {
		return p.tooManyFiles()
	}
	byOffset := make(map[int64]*object)
	for range count {
		h, err := scanner.NextObjectHeader()
		if err != nil {
			return err
		}
		o := &object{kind: h.Type, size: h.Length, entrySize: h.Length, offset: h.Offset}
		switch h.Type {
		case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject, plumbing.TagObject:
		case plumbing.OFSDeltaObject:
			o.delta, o.base = true, byOffset[h.OffsetReference]
			if o.base == nil {
				return broken("a delta without a base")
			}
		case plumbing.REFDeltaObject:
			o.delta, o.baseID = true, h.Reference
		default:
			return broken("an object of an unknown type")
		}
		if err := p.unpack(scanner, o); err != nil {
			return err
		}
		byOffset[o.offset] = o
		p.objects = append(p.objects, o)
	}
	p.checksum, err = scanner.Checksum()
	return err
}

// unpack reads the entry of o, at which scanner stands.
func (p *pack) unpack(scanner *packfile.Scanner, o *object) error {
	if err := p.account(o.entrySize); err != nil {
		return err
	}
	if o.kind != plumbing.BlobObject {
		if err := checkWhole(o.entrySize); err != nil {
			return err
		}
	}
	var sinks []io.Writer
	var hasher plumbing.Hasher
	if !o.delta {
		hasher = plumbing.NewHasher(o.kind, o.entrySize)
		sinks = append(sinks, hasher)
	}
	var buffer *bytes.Buffer
	if p.hold(o.entrySize) {
		buffer = bytes.NewBuffer(make([]byte, 0, o.entrySize))
		sinks = append(sinks, buffer)
	}
	n, crc, err := scanner.NextObject(io.MultiWriter(sinks...))
	if err != nil {
		return err
	}
	if n != o.entrySize {
		return broken("an object is shorter than it says")
	}
	o.crc = crc
	if buffer != nil {
		o.entry = buffer.Bytes()
	}
	if o.delta {
		return nil
	}
	return p.name(o, hasher)
}

// name gives o the id that its content has.
func (p *pack) name(o *object, hasher plumbing.Hasher) error {
	type detecting interface {
		CollisionResistantSum([]byte) ([]byte, bool)
	}
	if d, ok := hasher.Hash.(detecting); ok {
		if _, collision := d.CollisionResistantSum(nil); collision {
			return refuse("one of its objects is made to collide with another's SHA-1")
		}
	}
	o.id = hasher.Sum()
	p.byID[o.id] = o
	return nil
}

// account counts n bytes of unpacked objects, before they are unpacked.
func (p *pack) account(n int64) error {
	if n < 0 || n > p.limits.TreeBytes-p.unpacked {
		return refuse("it unpacks to more than %s (--source-limit)", size(p.limits.TreeBytes))
	}
	p.unpacked += n
	return nil
}

func (p *pack) tooManyFiles() error {
	return refuse("it has more than %d files and directories", p.limits.Files)
}

func checkWhole(n int64) error {
	if n < 0 || n > maxWholeBytes {
		return refuse("an object of it takes more than %s of memory to unpack", size(maxWholeBytes))
	}
	return nil
}

// hold reports whether n more bytes may be kept in memory, and counts them.
func (p *pack) hold(n int64) bool {
	if n > heldBytes-p.held {
		return false
	}
	p.held += n
	return true
}

// bytes returns the content of a resolved object. The caller must not change it.
func (p *pack) bytes(ctx context.Context, o *object) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := checkWhole(o.size); err != nil {
		return nil, err
	}
	switch {
	case !o.delta:
		return p.inflate(ctx, o)
	case o.content != nil:
		return o.content, nil
	}
	return p.patch(ctx, o)
}

// inflate returns what stands in the pack for o: its content, or a delta.
func (p *pack) inflate(ctx context.Context, o *object) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.entry != nil {
		return o.entry, nil
	}
	buffer := bytes.NewBuffer(make([]byte, 0, o.entrySize))
	if err := p.inflateTo(buffer, o); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

func (p *pack) inflateTo(w io.Writer, o *object) error {
	if _, err := p.again.SeekObjectHeader(o.offset); err != nil {
		return err
	}
	_, _, err := p.again.NextObject(w)
	return err
}

// writeTo writes the content of a resolved object, of any size.
func (p *pack) writeTo(ctx context.Context, w io.Writer, o *object) error {
	if !o.delta && o.entry == nil {
		return p.inflateTo(w, o)
	}
	content, err := p.bytes(ctx, o)
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

// index is the pack's .idx file.
func (p *pack) index(w io.Writer) error {
	var index idxfile.Writer
	_ = index.OnHeader(uint32(len(p.objects))) // never fails
	for _, o := range p.objects {
		index.Add(o.id, uint64(o.offset), o.crc)
	}
	if err := index.OnFooter(p.checksum); err != nil {
		return err
	}
	memory, err := index.Index()
	if err != nil {
		return err
	}
	_, err = idxfile.NewEncoder(w).Encode(memory)
	return err
}

// A contextReader ends with the cause of ctx.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// A fileReader is a contextReader that can seek, which go-git's scanner asks for.
type fileReader struct {
	ctx  context.Context
	file *os.File
}

func (r *fileReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.file.Read(p)
}

func (r *fileReader) Seek(offset int64, whence int) (int64, error) {
	return r.file.Seek(offset, whence)
}

package queue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
)

// Bounds of a stored record. One that this program writes has less than a
// hundredth of the bytes and three levels; the rest is room for newer ones.
const (
	maxRecordBytes = 64 << 10
	maxRecordDepth = 32
)

// unknown is what the text of a record, or of an object in it, holds that this
// program has no field for. It is never changed, so copies of a record share it.
type unknown struct {
	members []member            // under names that are not known, in their order
	inside  map[string]*unknown // of objects that are changed field by field
	whole   map[string]replaced // of values that are only ever replaced
}

// A member is one name and its value in a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// replaced is a value with unknown fields somewhere inside. Its text belongs to
// that one value: a build that has another artifact has no use for what a newer
// program noted of the last one.
type replaced struct {
	known json.RawMessage // as this program writes it
	text  json.RawMessage // as it was read
}

// decodeStrict fills v from data, and fails if a field of data is not known.
func decodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// unknownOf collects what known has no field for in the valid JSON object data.
func unknownOf(data []byte, known fields) (*unknown, error) {
	all, err := members(data)
	if err != nil {
		return nil, err
	}
	u := &unknown{inside: map[string]*unknown{}, whole: map[string]replaced{}}
	for _, m := range all {
		f, ok := known.find(m.name)
		switch {
		case !ok:
			u.add(m)
		case m.value[0] == '{' && f.inside != nil:
			in, err := unknownOf(m.value, f.inside)
			if err != nil {
				return nil, err
			}
			u.inside[f.name] = in
		case m.value[0] == '{' || m.value[0] == '[':
			v := reflect.New(f.typ).Interface()
			if decodeStrict(m.value, v) == nil {
				continue
			}
			w := replaced{text: m.value}
			if err := json.Unmarshal(m.value, v); err != nil {
				return nil, err
			}
			if w.known, err = json.Marshal(v); err != nil {
				return nil, err
			}
			u.whole[f.name] = w
		}
	}
	return u, nil
}

// add keeps m; of two members with one name the later counts, as everywhere in JSON.
func (u *unknown) add(m member) {
	for i, old := range u.members {
		if old.name == m.name {
			u.members[i] = m
			return
		}
	}
	u.members = append(u.members, m)
}

// restore puts into the object data, as this program wrote it, what it has no field for.
func (u *unknown) restore(data []byte) ([]byte, error) {
	all, err := members(data)
	if err != nil {
		return nil, err
	}
	for i, m := range all {
		if w, ok := u.whole[m.name]; ok && bytes.Equal(w.known, m.value) {
			all[i].value = w.text
		}
		if in := u.inside[m.name]; in != nil && m.value[0] == '{' {
			if all[i].value, err = in.restore(m.value); err != nil {
				return nil, err
			}
		}
	}
	var b bytes.Buffer
	for i, m := range append(all, u.members...) {
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		b.WriteByte("{,"[min(i, 1)])
		b.Write(name)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// members reads an object without looking into its values.
func members(object []byte) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("not an object"), err)
	}
	var all []member
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: t.(string)} // the decoder allows nothing else here
		if err := d.Decode(&m.value); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// shallow reports whether no value of the valid JSON data lies deeper than most.
func shallow(data []byte, most int) bool {
	depth, text := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{' || c == '[':
			if depth++; depth > most {
				return false
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return true
}

// fields are the names under which a struct's fields stand in JSON.
type fields map[string]field

type field struct {
	name   string
	typ    reflect.Type
	inside fields // of a struct that has no form of its own in JSON, else nil
}

// recordFields are those of a record.
var recordFields = sync.OnceValue(func() fields { return fieldsOf(reflect.TypeFor[record]()) })

// find looks a name up as encoding/json does: spelt exactly so, else in another case.
func (f fields) find(name string) (field, bool) {
	if found, ok := f[name]; ok {
		return found, true
	}
	for known, found := range f {
		if strings.EqualFold(known, name) {
			return found, true
		}
	}
	return field{}, false
}

// fieldsOf reads the tags of a struct as encoding/json does. The fields of
// embedded structs stand among the others; a name of the outer one goes before.
func fieldsOf(t reflect.Type) fields {
	all := fields{}
	var embedded []reflect.Type
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			embedded = append(embedded, f.Type)
		case !f.IsExported() || f.Tag.Get("json") == "-":
		default:
			if name == "" {
				name = f.Name
			}
			all[name] = field{name: name, typ: f.Type, inside: insideOf(f.Type)}
		}
	}
	for _, t := range embedded {
		for name, f := range fieldsOf(t) {
			if _, ok := all[name]; !ok {
				all[name] = f
			}
		}
	}
	return all
}

func insideOf(t reflect.Type) fields {
	if t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	return fieldsOf(t)
}

// tooLarge is the error of a record beyond the bound, nil for others.
func tooLarge(data []byte) error {
	if len(data) > maxRecordBytes {
		return fmt.Errorf("it has %d bytes; a record may have %d", len(data), maxRecordBytes)
	}
	return nil
}

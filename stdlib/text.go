package stdlib

// How much is kept of what commands write.
const (
	maxList = 64 << 10 // the names of packages
	maxSaid = 4 << 10  // what went wrong
)

// A text keeps the beginning of what is written to it.
type text struct {
	b   []byte
	max int
}

func (t *text) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), t.max-len(t.b))]...)
	return len(p), nil
}

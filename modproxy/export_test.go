package modproxy

// Waiting is how many requests wait for the fetch of a file.
func (p *Proxy) Waiting(name string) int {
	p.files.mu.Lock()
	defer p.files.mu.Unlock()
	if f := p.files.now[name]; f != nil {
		return f.users
	}
	return 0
}

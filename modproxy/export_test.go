package modproxy

// Waiting is how many requests wait for the fetch of a file.
func (p *Proxy) Waiting(name string) int {
	p.flights.mu.Lock()
	defer p.flights.mu.Unlock()
	if f := p.flights.now[name]; f != nil {
		return f.users
	}
	return 0
}

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

// Verdict is what a Proxy makes of an error of goproxy's fetcher for a zip.
func Verdict(path, version string, err error) error {
	return new(verifier).verdict(request{path: path, version: version}, err)
}

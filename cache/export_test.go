package cache

// InBoot makes a cache believe that the machine has started again.
func (o Options) InBoot(id string) Options {
	o.boot = id
	return o
}

// EntryText returns what the parser of actions makes of text, written again.
func EntryText(text []byte) ([]byte, error) {
	e, err := parseEntry(text)
	if err != nil {
		return nil, err
	}
	return e.text(), nil
}

// ListedLayers parses a list.
func ListedLayers(text []byte) (ids []string, err error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	for _, a := range l.Layers {
		ids = append(ids, a.ID)
	}
	return ids, nil
}

package disk

// ParseMounts is tested on its own because it reads what other programs wrote.
var ParseMounts = parseMounts

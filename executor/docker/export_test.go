package docker

// ArchiveDigest is the digest of the configuration of the image in an archive.
func ArchiveDigest(name string) (string, error) {
	a, err := openArchive(name)
	if err != nil {
		return "", err
	}
	defer a.Close()
	return a.digest, nil
}

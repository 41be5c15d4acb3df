package modproxy

// Metrics counts what builds had from a Proxy. Its methods are called by many
// at once.
type Metrics interface {
	// ModulesServed counts the files that builds asked a Door for and those
	// that a Tree was to hold, by one of Sources.
	ModulesServed(from string, n int)
	// ModuleBytesFetched counts what upstreams answered, the checksum
	// database's records with it.
	ModuleBytesFetched(n int64)
}

const (
	fromCache    = "cache"    // or from a fetch that another build had begun
	fromUpstream = "upstream" // fetched for it
	fromRefused  = "refused"  // by the filter, a limit, the settings or the upstream, which has none; or not what go.sum says
	fromFailed   = "failed"   // no answer, or one that did not stand the checks
)

// Sources are the values of from that ModulesServed is told.
func Sources() []string { return []string{fromCache, fromUpstream, fromRefused, fromFailed} }

type noMetrics struct{}

func (noMetrics) ModulesServed(string, int) {}
func (noMetrics) ModuleBytesFetched(int64)  {}

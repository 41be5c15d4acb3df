package queue

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

const (
	maxLabels    = 16
	maxLabelText = 63  // bytes of a name or a value
	maxName      = 128 // bytes of a worker's name
)

// plainPattern is safe as a key of a bucket, in a log line and in a shell.
var plainPattern = regexp.MustCompile(`^[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*$`)

func plain(s string, most int) bool { return len(s) <= most && plainPattern.MatchString(s) }

// ParseLabels reads labels as they stand on a command line: os=linux,zone=a.
// There are none in "".
func ParseLabels(s string) (map[string]string, error) {
	labels := map[string]string{}
	if s == "" {
		return labels, nil
	}
	if strings.Count(s, ",") >= maxLabels {
		return nil, tooManyLabels()
	}
	for pair := range strings.SplitSeq(s, ",") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("the label %.80q has no value; write name=value, with commas between labels", pair)
		}
		if _, twice := labels[name]; twice {
			return nil, fmt.Errorf("the label %.80q is there twice", name)
		}
		labels[name] = value
	}
	if err := checkLabels(labels); err != nil {
		return nil, err
	}
	return labels, nil
}

func tooManyLabels() error {
	return fmt.Errorf("there are more than %d labels, which is what a worker may have", maxLabels)
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return tooManyLabels()
	}
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if !plain(name, maxLabelText) || !plain(labels[name], maxLabelText) {
			return fmt.Errorf("the label %.80q=%.80q is not plain: name and value are up to %d letters, digits, dots, dashes and underscores", name, labels[name], maxLabelText)
		}
	}
	return nil
}

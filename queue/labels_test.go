package queue_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/queue"
)

func TestParseLabels(t *testing.T) {
	for _, tc := range []struct {
		text string
		want map[string]string
	}{
		{"", map[string]string{}},
		{"os=linux", map[string]string{"os": "linux"}},
		{"os=linux,zone=eu.west-1_a", map[string]string{"os": "linux", "zone": "eu.west-1_a"}},
		{strings.Repeat("n", 63) + "=" + strings.Repeat("v", 63), map[string]string{strings.Repeat("n", 63): strings.Repeat("v", 63)}},
	} {
		got, err := queue.ParseLabels(tc.text)
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("ParseLabels(%q): %v (-want +got):\n%s", tc.text, err, diff)
		}
	}
	for _, text := range []string{
		"os", "=", "os=", "=linux", "os=linux,", ",", "os=linux,os=linux", "os=a=b", "os = linux", "os=li nux", "os=ü", "os=a\n", "os=..", "-os=a",
		strings.Repeat("n", 64) + "=v", "n=" + strings.Repeat("v", 64), "a=1,b=1,c=1,d=1,e=1,f=1,g=1,h=1,i=1,j=1,k=1,l=1,m=1,n=1,o=1,p=1,q=1",
	} {
		if got, err := queue.ParseLabels(text); err == nil {
			t.Errorf("ParseLabels(%q) = %v", text, got)
		}
	}
}

// What is read can be written down, and is then read the same.
func FuzzParseLabels(f *testing.F) {
	f.Add("os=linux,zone=a")
	f.Add("a=1,b=2,a=3")
	f.Fuzz(func(t *testing.T, text string) {
		labels, err := queue.ParseLabels(text)
		if err != nil {
			return
		}
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(labels)) {
			pairs = append(pairs, name+"="+labels[name])
		}
		if len(labels) > 16 || len(strings.Join(pairs, ",")) != len(text) || strings.ContainsAny(text, " \n\"'$*>/\\") {
			t.Errorf("%q became %v", text, labels)
		}
		again, err := queue.ParseLabels(strings.Join(pairs, ","))
		if err != nil || !maps.Equal(again, labels) {
			t.Errorf("%v became %v, %v", labels, again, err)
		}
	})
}

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A natsCluster is three NATS servers, each on a machine of its own.
type natsCluster struct {
	t     *testing.T
	token string
	nodes []*natsNode
}

type natsNode struct {
	*process
	*machine
	name string
}

// bin is the path of a program in the project's bin.
func bin(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/" + name)
	if err == nil {
		_, err = os.Stat(path)
	}
	require(t, name, err)
	return path
}

func newNATS(t *testing.T, n *lan, dir string) *natsCluster {
	t.Helper()
	program := bin(t, "nats-server")
	c := &natsCluster{t: t, token: "nats-Token-0123456789"}
	var routes []string
	for i := range 3 {
		c.nodes = append(c.nodes, &natsNode{machine: n.join(), name: fmt.Sprintf("n%d", i+1)})
		routes = append(routes, "nats://"+c.nodes[i].address+":6222")
	}
	for _, node := range c.nodes {
		config := filepath.Join(dir, node.name+".conf")
		if err := os.WriteFile(config, fmt.Appendf(nil, `server_name: %[1]s
listen: "%[2]s:4222"
http: "%[2]s:8222"
authorization { token: %[3]q }
jetstream { store_dir: %[4]q, sync_interval: always }
cluster { name: cargo, listen: "%[2]s:6222", routes: [%[5]s] }
`, node.name, node.address, c.token, filepath.Join(dir, node.name), strings.Join(routes, ", ")), 0o600); err != nil {
			t.Fatal(err)
		}
		node.process = newProcess(t, node.name, dir, nil, node.inside(program, "-c", config)...)
	}
	for _, node := range c.nodes {
		until(t, node.name+" is ready", node.ready)
	}
	return c
}

// urls are the addresses for clients.
func (c *natsCluster) urls() string {
	var urls []string
	for _, node := range c.nodes {
		urls = append(urls, "nats://"+node.address+":4222")
	}
	return strings.Join(urls, ",")
}

var monitor = &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func (n *natsNode) ready() bool {
	resp, err := monitor.Get("http://" + n.machine.address + ":8222/healthz")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// leader is the node that leads a stream, or with "" the cluster itself; nil
// if there is none just now.
func (c *natsCluster) leader(stream string) *natsNode {
	for _, node := range c.nodes {
		resp, err := monitor.Get("http://" + node.machine.address + ":8222/jsz?accounts=1&streams=1")
		if err != nil {
			continue
		}
		var state struct {
			Meta struct {
				Leader string `json:"leader"`
			} `json:"meta_cluster"`
			Accounts []struct {
				Streams []struct {
					Name    string `json:"name"`
					Cluster struct {
						Leader string `json:"leader"`
					} `json:"cluster"`
				} `json:"stream_detail"`
			} `json:"account_details"`
		}
		err = json.NewDecoder(resp.Body).Decode(&state)
		_ = resp.Body.Close()
		if err != nil {
			continue
		}
		name := state.Meta.Leader
		if stream != "" {
			name = ""
			for _, a := range state.Accounts {
				for _, s := range a.Streams {
					if s.Name == stream {
						name = s.Cluster.Leader
					}
				}
			}
		}
		for _, n := range c.nodes {
			if n.name == name {
				return n
			}
		}
	}
	return nil
}

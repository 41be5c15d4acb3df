package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A cluster is NATS servers, each a process, that keep a queue together.
type cluster struct {
	nodes []*process
	urls  []string // for clients
}

const clusterNodes = 3

const nodeConf = `server_name: %[1]s
listen: "%[2]s"
http: "%[3]s"
jetstream { store_dir: "%[4]s", sync_interval: always }
cluster { name: bench, listen: "%[5]s", routes: [%[6]s] }
`

// startCluster starts a cluster whose data is below dir, and returns when all
// nodes have the same leader.
func (l *lab) startCluster(ctx context.Context, dir string) (_ *cluster, err error) {
	program, err := l.tool("nats-server", "nats-server")
	if err != nil {
		return nil, err
	}
	c := &cluster{}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	var clientsAt, routesAt, monitorsAt, routes []string
	for range clusterNodes {
		for _, list := range []*[]string{&clientsAt, &routesAt, &monitorsAt} {
			address, err := freeAddress()
			if err != nil {
				return nil, err
			}
			*list = append(*list, address)
		}
		routes = append(routes, `"nats://`+routesAt[len(routesAt)-1]+`"`)
	}
	for i := range clusterNodes {
		name := fmt.Sprintf("n%d", i+1)
		data := filepath.Join(dir, name)
		conf := fmt.Sprintf(nodeConf, name, clientsAt[i], monitorsAt[i], data, routesAt[i], strings.Join(routes, ", "))
		if err := os.WriteFile(data+".conf", []byte(conf), 0o600); err != nil {
			return nil, err
		}
		p, err := start(ctx, data+".log", nil, program, "-c", data+".conf")
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, p)
		c.urls = append(c.urls, "nats://"+clientsAt[i])
	}
	for i, p := range c.nodes {
		err := p.until(ctx, time.Minute, 50*time.Millisecond, "it is one of the cluster", func() (bool, error) { return l.answers(ctx, "http://"+monitorsAt[i]+"/healthz"), nil })
		if err != nil {
			return nil, fmt.Errorf("%w\n%s", err, p.lastLines())
		}
	}
	return c, nil
}

func (c *cluster) stop() {
	for _, p := range c.nodes {
		p.stop()
	}
}

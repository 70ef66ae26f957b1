package nftables

import (
	"context"
	"fmt"

	"github.com/google/nftables"
)

// KubeProxyTable returns the table of a kube-proxy in its nftables mode, or "".
func KubeProxyTable(ctx context.Context, owner string) (string, error) {
	c, err := New(owner, nil).conn(ctx)
	if err != nil {
		return "", err
	}
	for _, family := range []struct {
		id   nftables.TableFamily
		name string
	}{{nftables.TableFamilyIPv4, "ip"}, {nftables.TableFamilyIPv6, "ip6"}} {
		tables, err := c.ListTablesOfFamily(family.id)
		if err != nil {
			return "", fmt.Errorf("nftables: list the tables: %w", err)
		}
		for _, t := range tables {
			if t.Name == "kube-proxy" {
				return family.name + " kube-proxy", nil
			}
		}
	}
	return "", nil
}

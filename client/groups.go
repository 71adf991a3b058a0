package client

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport/metas"
	"dfsd/transport/wire"
)

// CreateGroup has the cluster make one more namespace group and returns its
// number. It is usable once the map calls it ready. Without replicas the control
// leader chooses them. Unknown: it may have been done.
func (c *Client) CreateGroup(ctx context.Context, replicas []dfs.NodeID) (dfs.GroupID, error) {
	return op(ctx, c, "create group", "", func(ctx context.Context) (g dfs.GroupID, err error) {
		return g, c.changeGroups(ctx, func(ctx context.Context, m wire.DRPCMetaClient) error {
			reply, err := m.CreateGroup(ctx, &wire.CreateGroupRequest{Replicas: wire.Ints(replicas)})
			g = dfs.GroupID(reply.GetGroup())
			return err
		})
	})
}

// ChangeReplicas adds a node to those that should hold a group, takes one out, or
// both; 0 is none. The group follows in the background. Unknown: it may have been
// done.
func (c *Client) ChangeReplicas(ctx context.Context, g dfs.GroupID, add, remove dfs.NodeID) error {
	return opErr(ctx, c, "change replicas", g.String(), func(ctx context.Context) error {
		return c.changeGroups(ctx, func(ctx context.Context, m wire.DRPCMetaClient) error {
			_, err := m.ChangeReplicas(ctx, &wire.ChangeReplicasRequest{Group: uint32(g), Add: uint32(add), Remove: uint32(remove)})
			return err
		})
	})
}

func (c *Client) changeGroups(ctx context.Context, fn func(context.Context, wire.DRPCMetaClient) error) error {
	if c.opts.ReadOnly {
		return dfs.Errorf(dfs.ReadOnly, "", "the client is read-only")
	}
	return c.book.Call(ctx, dfs.ControlGroup, false, fn)
}

// MoveLeader has the leader of a group hand it to another voter.
func (c *Client) MoveLeader(ctx context.Context, g dfs.GroupID, to dfs.NodeID) error {
	return opErr(ctx, c, "move leader", g.String(), func(ctx context.Context) error {
		if c.opts.ReadOnly {
			return dfs.Errorf(dfs.ReadOnly, "", "the client is read-only")
		}
		return c.book.Call(ctx, g, true, func(ctx context.Context, m wire.DRPCMetaClient) error {
			_, err := m.MoveLeader(ctx, &wire.MoveLeaderRequest{Group: uint32(g), Node: uint32(to)})
			return err
		})
	})
}

// Replica asks a meta node what it knows of its replica of a group; a role of 0
// says that it has none.
func (c *Client) Replica(ctx context.Context, g dfs.GroupID, n *dfs.Node) (*wire.ReplicaReply, error) {
	return op(ctx, c, "ask replica", g.String()+" on "+n.Name, func(ctx context.Context) (*wire.ReplicaReply, error) {
		ctx, cancel := context.WithTimeout(ctx, metas.AttemptTimeout)
		defer cancel()
		reply, err := wire.NewDRPCMetaClient(c.opts.Dial(n.Addr)).Replica(ctx, &wire.ReplicaRequest{Group: uint32(g)})
		return reply, readFailed(ctx, err)
	})
}

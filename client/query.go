package client

import (
	"context"

	"dfsd/dfs"
	"dfsd/transport/wire"
)

// query asks a namespace group. The answer is linearizable.
func (c *Client) query(ctx context.Context, g dfs.GroupID, q *wire.Query) (*wire.QueryResult, error) {
	if g == dfs.ControlGroup {
		return nil, dfs.Errorf(dfs.Invalid, "", "no namespace group owns the inode")
	}
	q.Cred = &wire.Cred{Uid: c.opts.Cred.UID, Gid: c.opts.Cred.GID, Groups: c.opts.Cred.Groups}
	t := turn[*wire.QueryResult]{alone: true}
	if sharable(q) {
		t = c.reader(g).do(ctx, q)
	}
	if t.alone {
		t = c.askAlone(ctx, g, q)
	}
	if t.err != nil {
		return nil, readFailed(ctx, t.err)
	}
	if t.answer == nil {
		return nil, dfs.Errorf(dfs.Internal, "", "group %v sent an empty answer", g)
	}
	c.saw(t.answer.GetVersion())
	return t.answer, nil
}

// sharable reports whether a query may share a request: its answer is small.
func sharable(q *wire.Query) bool {
	switch q := q.GetQuery().(type) {
	case *wire.Query_Attr:
		return len(q.Attr.GetInos()) == 1
	case *wire.Query_Walk:
		return len(q.Walk.GetNames()) <= maxSharedNames && !q.Walk.GetContent()
	}
	return false
}

func (c *Client) askAlone(ctx context.Context, g dfs.GroupID, q *wire.Query) (t turn[*wire.QueryResult]) {
	req := &wire.ReadRequest{Group: uint32(g), Query: q}
	ask := func(ctx context.Context, m wire.DRPCMetaClient) error {
		reply, err := m.Read(ctx, req)
		t.answer = reply.GetResult()
		return err
	}
	if c.opts.SpreadReads {
		t.err = c.book.CallAny(ctx, g, ask)
	} else {
		t.err = c.book.Call(ctx, g, true, ask)
	}
	return t
}

func (c *Client) askMany(ctx context.Context, g dfs.GroupID, qs []*wire.Query) (out []turn[*wire.QueryResult]) {
	req := &wire.ReadManyRequest{Group: uint32(g), Queries: qs}
	ask := func(ctx context.Context, m wire.DRPCMetaClient) error {
		reply, err := m.ReadMany(ctx, req)
		if err != nil {
			return err
		}
		out = make([]turn[*wire.QueryResult], len(reply.GetAnswers()))
		for i, a := range reply.GetAnswers() {
			out[i] = turnOf(a.GetResult(), a.GetRefusal())
		}
		return nil
	}
	// Each learns of an error when it asks alone.
	if c.opts.SpreadReads {
		_ = c.book.CallAny(ctx, g, ask)
	} else {
		_ = c.book.Call(ctx, g, false, ask)
	}
	return out
}

// reader returns what queries of a group share requests in.
func (c *Client) reader(g dfs.GroupID) *sharer[*wire.Query, *wire.QueryResult] {
	c.mu.Lock()
	defer c.mu.Unlock()
	sh := c.readers[g]
	if sh == nil {
		sh = &sharer[*wire.Query, *wire.QueryResult]{
			size: func(*wire.Query) int { return 0 }, // see sharable
			one:  func(ctx context.Context, q *wire.Query) turn[*wire.QueryResult] { return c.askAlone(ctx, g, q) },
			many: func(ctx context.Context, qs []*wire.Query) ([]turn[*wire.QueryResult], bool) {
				return c.askMany(ctx, g, qs), false
			},
		}
		c.readers[g] = sh
	}
	return sh
}

// readFailed gives the error of a request that changes nothing its kind: an
// outcome that is not known is just no answer.
func readFailed(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	switch dfs.KindOf(err) {
	case dfs.Unknown:
		return &dfs.Error{Kind: dfs.Unavailable, Err: err}
	case dfs.Other:
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
	}
	return err
}

// attrs returns the attributes of inodes of one group, in order; nil for those
// that do not exist.
func (c *Client) attrs(ctx context.Context, g dfs.GroupID, inos []uint64) ([]*wire.Attr, error) {
	return c.attrPages(ctx, g, &wire.AttrQuery{Inos: inos})
}

// below is attrs, with what lies below directories.
func (c *Client) below(ctx context.Context, g dfs.GroupID, inos []uint64) ([]*wire.Attr, error) {
	return c.attrPages(ctx, g, &wire.AttrQuery{Inos: inos, Below: true})
}

func (c *Client) attrPages(ctx context.Context, g dfs.GroupID, q *wire.AttrQuery) ([]*wire.Attr, error) {
	inos := q.Inos
	var out []*wire.Attr
	for len(inos) > 0 {
		page := inos[:min(len(inos), maxPage)]
		res, err := c.query(ctx, g, &wire.Query{Query: &wire.Query_Attr{Attr: &wire.AttrQuery{Inos: page, Below: q.Below}}})
		if err != nil {
			return nil, err
		}
		got := res.GetAttr().GetAttrs()
		if len(got) == 0 || len(got) > len(page) {
			return nil, dfs.Errorf(dfs.Internal, "", "group %v answered with %d inodes for %d", g, len(got), len(page))
		}
		for _, a := range got {
			if a.GetIno() == 0 {
				a = nil
			}
			out = append(out, a)
		}
		inos = inos[len(got):]
	}
	return out, nil
}

// attr returns the attributes of an inode.
func (c *Client) attr(ctx context.Context, ino dfs.Ino) (*wire.Attr, error) {
	got, err := c.attrs(ctx, ino.Group(), []uint64{uint64(ino)})
	if err != nil {
		return nil, err
	}
	if got[0] == nil {
		return nil, dfs.Errorf(dfs.NotExist, "", "inode %v does not exist", ino)
	}
	return got[0], nil
}

// walk looks names up from a directory, as far as one group goes. With content
// set it says too where the bytes are of a file that it ends at.
func (c *Client) walk(ctx context.Context, start dfs.Ino, names [][]byte, content bool) (*wire.WalkResult, error) {
	res, err := c.query(ctx, start.Group(), &wire.Query{Query: &wire.Query_Walk{Walk: &wire.WalkQuery{
		Start: uint64(start), Names: names, Content: content,
	}}})
	if err != nil {
		return nil, err
	}
	w := res.GetWalk()
	if w == nil || w.Start == nil || len(w.Steps) > len(names) {
		return nil, dfs.Errorf(dfs.Internal, "", "group %v answered a walk of %d names with %d steps", start.Group(), len(names), len(w.GetSteps()))
	}
	return w, nil
}

// maxVanished is how often a name is followed anew whose inode was gone by the time
// that its own group was asked: another one has taken its place meanwhile, or none.
const maxVanished = 4

// entryAttr returns the attributes of what a directory's entry names, whatever group
// that lives in.
func (c *Client) entryAttr(ctx context.Context, dir dfs.Ino, name []byte) (a *wire.Attr, err error) {
	for range maxVanished {
		w, werr := c.walk(ctx, dir, [][]byte{name}, false)
		switch {
		case werr != nil:
			return nil, werr
		case len(w.Steps) == 1:
			return w.Steps[0], nil
		case w.Next == 0:
			return nil, dfs.Errorf(dfs.NotExist, "", "")
		}
		if a, err = c.attr(ctx, dfs.Ino(w.Next)); dfs.KindOf(err) != dfs.NotExist {
			return a, err
		}
	}
	return nil, err
}

// maxPage is how many rows one request of a listing asks for: a page of names
// of 255 bytes and their attributes stays well under dfs.MaxMessage.
const maxPage = 1024

// extentPage returns the attributes of a file and the extents that reach into a
// range of it, of one version; more says that there are further ones.
func (c *Client) extentPage(ctx context.Context, ino dfs.Ino, offset, length int64) (*wire.ExtentsResult, error) {
	res, err := c.query(ctx, ino.Group(), &wire.Query{Query: &wire.Query_Extents{Extents: &wire.ExtentsQuery{
		Ino: uint64(ino), Offset: offset, Length: length, Limit: maxPage,
	}}})
	if err != nil {
		return nil, err
	}
	x := res.GetExtents()
	if x.GetAttr() == nil {
		return nil, dfs.Errorf(dfs.Internal, "", "group %v sent an empty answer", ino.Group())
	}
	return x, nil
}

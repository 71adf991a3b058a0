package namespace

import (
	"bytes"
	"errors"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// Limits of one answer. MaxAnswer leaves half of dfs.MaxMessage to whatever
// goes around it.
const (
	MaxAnswer = 512 << 10 // bytes

	maxInodes  = 1024 // of an AttrQuery
	maxNames   = dfs.MaxPath / 2
	maxEntries = 4096 // of a page of a directory, or of a file's extents
	maxContent = 64   // extents that come with a walk: 256 MiB of full blocks in some KiB
)

// Query answers a linearizable read of a group. It changes nothing and is safe
// for any number of callers at once. Its errors are those of package dfs:
// NotExist, NotDir, Invalid, TooLarge, Unsupported, Unavailable before the
// group's first entry, Corrupt.
func Query(r raftgroup.Reader, g dfs.GroupID, q *wire.Query) (*wire.QueryResult, error) {
	out, err := query(r, g, q)
	var ref *refusal
	if errors.As(err, &ref) {
		return nil, dfs.Errorf(ref.kind, "", "%s", ref.text)
	}
	return out, err
}

// view is one query's sight of a group.
type view struct {
	r raftgroup.Reader
	g dfs.GroupID
}

func query(r raftgroup.Reader, g dfs.GroupID, q *wire.Query) (*wire.QueryResult, error) {
	st, err := readState(r)
	if err != nil {
		return nil, err
	}
	switch {
	case st == nil:
		return nil, refuse(dfs.Unavailable, "group %v has no state yet", g)
	case st.group != g:
		return nil, broken("the rows of group %v in place of those of %v", st.group, g)
	}
	v, out := view{r, g}, &wire.QueryResult{Version: uint64(st.version)}
	switch q := q.GetQuery().(type) {
	case *wire.Query_Walk:
		res, err := v.walk(q.Walk)
		out.Result = &wire.QueryResult_Walk{Walk: res}
		return out, err
	case *wire.Query_Attr:
		res, err := v.attr(q.Attr)
		out.Result = &wire.QueryResult_Attr{Attr: res}
		return out, err
	case *wire.Query_ReadDir:
		res, err := v.readDir(q.ReadDir)
		out.Result = &wire.QueryResult_ReadDir{ReadDir: res}
		return out, err
	case *wire.Query_Extents:
		res, err := v.extents(q.Extents)
		out.Result = &wire.QueryResult_Extents{Extents: res}
		return out, err
	case *wire.Query_PlaceDir:
		res, err := v.placeDir(q.PlaceDir, st)
		out.Result = &wire.QueryResult_PlaceDir{PlaceDir: res}
		return out, err
	case *wire.Query_Child:
		res, err := v.child(q.Child)
		out.Result = &wire.QueryResult_Child{Child: res}
		return out, err
	}
	return nil, refuse(dfs.Unsupported, "query of an unknown kind")
}

func (v view) need(ino dfs.Ino) (*inode, error) {
	if ino.Group() != v.g {
		return nil, refuse(dfs.Invalid, "inode %v is not of group %v", ino, v.g)
	}
	n, err := readInode(v.r, ino)
	if err == nil && n == nil {
		err = refuse(dfs.NotExist, "inode %v does not exist", ino)
	}
	return n, err
}

func (v view) directory(ino dfs.Ino) (*inode, error) {
	n, err := v.need(ino)
	if err == nil && !n.isDir() {
		err = refuse(dfs.NotDir, "inode %v is not a directory", ino)
	}
	return n, err
}

// entry returns the inode that an entry of this group names.
func (v view) entry(ino dfs.Ino) (*inode, error) {
	n, err := readInode(v.r, ino)
	if err == nil && n == nil {
		err = broken("an entry names inode %v, which does not exist", ino)
	}
	return n, err
}

func (v view) walk(q *wire.WalkQuery) (*wire.WalkResult, error) {
	if len(q.Names) > maxNames {
		return nil, refuse(dfs.TooLarge, "a walk of %d names: at most %d", len(q.Names), maxNames)
	}
	for _, name := range q.Names {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	n, err := v.directory(dfs.Ino(q.Start))
	if err != nil {
		return nil, err
	}
	out := &wire.WalkResult{Start: n.wire()}
	for _, name := range q.Names {
		if !n.isDir() {
			out.NotDir = true
			break
		}
		e, err := readDentry(v.r, n.ino, name)
		if err != nil {
			return nil, err
		}
		if e == nil {
			out.Missing = true
			break
		}
		if e.ino.Group() != v.g {
			out.Next = uint64(e.ino)
			break
		}
		if n, err = v.entry(e.ino); err != nil {
			return nil, err
		}
		out.Steps = append(out.Steps, n.wire())
	}
	if q.Content && len(out.Steps) == len(q.Names) && n.typ == wire.FileType_FILE {
		if out.Content, err = v.extents(&wire.ExtentsQuery{Ino: uint64(n.ino), Limit: maxContent}); err != nil {
			return nil, err
		}
		out.Content.Attr = nil // that of the last step
	}
	return out, nil
}

// attr answers for the inodes asked, in order. It may answer for fewer when
// the answer grows too long: the caller asks again for the others.
func (v view) attr(q *wire.AttrQuery) (*wire.AttrResult, error) {
	if len(q.Inos) > maxInodes {
		return nil, refuse(dfs.TooLarge, "attributes of %d inodes: at most %d", len(q.Inos), maxInodes)
	}
	out, size := &wire.AttrResult{}, 0
	for _, ino := range q.Inos {
		if dfs.Ino(ino).Group() != v.g {
			return nil, refuse(dfs.Invalid, "inode %v is not of group %v", dfs.Ino(ino), v.g)
		}
		n, err := readInode(v.r, dfs.Ino(ino))
		if err != nil {
			return nil, err
		}
		a := &wire.Attr{}
		if n != nil {
			a = n.wire()
		}
		if size += proto.Size(a) + 4; size > MaxAnswer {
			break
		}
		out.Attrs = append(out.Attrs, a)
	}
	return out, nil
}

func (v view) readDir(q *wire.ReadDirQuery) (*wire.ReadDirResult, error) {
	dir, err := v.directory(dfs.Ino(q.Ino))
	if err != nil {
		return nil, err
	}
	lower := dentryKey(dir.ino, q.After)
	if len(q.After) > 0 {
		lower = append(lower, 0) // the first name past it
	}
	out := &wire.ReadDirResult{Dir: dir.wire()}
	limit, size := page(q.Limit), 0
	err = scan(v.r, lower, after(dentryKey(dir.ino, nil)), func(key, value []byte) (bool, error) {
		e, err := decodeDentry(key, value)
		if err != nil {
			return false, err
		}
		d := &wire.DirEntry{Name: bytes.Clone(key[9:]), Ino: uint64(e.ino), Type: e.typ}
		if q.Plus && e.ino.Group() == v.g {
			n, err := v.entry(e.ino)
			if err != nil {
				return false, err
			}
			d.Attr = n.wire()
		}
		if size += proto.Size(d) + 4; size > MaxAnswer || len(out.Entries) == limit {
			out.More = true
			return false, nil
		}
		out.Entries = append(out.Entries, d)
		return true, nil
	})
	return out, err
}

// page returns how many rows an answer has at the most.
func page(limit uint32) int {
	if limit == 0 {
		return maxEntries
	}
	return int(min(limit, maxEntries))
}

// extents answers with the extents that reach into the range asked for, whole;
// length 0 asks for all from the offset on.
func (v view) extents(q *wire.ExtentsQuery) (*wire.ExtentsResult, error) {
	n, err := v.need(dfs.Ino(q.Ino))
	if err != nil {
		return nil, err
	}
	if err := checkFile(n); err != nil {
		return nil, err
	}
	if q.Offset < 0 || q.Offset > dfs.MaxFileSize || q.Length < 0 {
		return nil, refuse(dfs.Invalid, "%d bytes from %d of a file", q.Length, q.Offset)
	}
	end := dfs.MaxFileSize
	if q.Length > 0 && q.Length < end-q.Offset {
		end = q.Offset + q.Length
	}
	out := &wire.ExtentsResult{Attr: n.wire()}
	limit := page(q.Limit)
	err = scanExtents(v.r, n.ino, q.Offset, func(e extent) (bool, error) {
		if e.offset >= end {
			return false, nil
		}
		if len(out.Extents) == limit {
			out.More = true
			return false, nil
		}
		out.Extents = append(out.Extents, e.wire())
		return true, nil
	})
	return out, err
}

// placeDir answers what the choice of a new directory's group needs; the group
// is chosen by the caller.
func (v view) placeDir(q *wire.PlaceDirQuery, st *state) (*wire.PlaceDirResult, error) {
	if err := checkName(q.Name); err != nil {
		return nil, err
	}
	dir, err := v.directory(dfs.Ino(q.Parent))
	if err != nil {
		return nil, err
	}
	return &wire.PlaceDirResult{Parent: dir.wire(), Class: firstOf(dir.class, st.defaultClass)}, nil
}

// child answers whether a directory of another group is linked here. With
// fenced set the answer is final for what the session has begun.
func (v view) child(q *wire.ChildQuery) (*wire.ChildResult, error) {
	row, err := readChild(v.r, dfs.Ino(q.Child))
	if err != nil {
		return nil, err
	}
	f, err := readFence(v.r)
	if err != nil {
		return nil, err
	}
	out := &wire.ChildResult{Fenced: q.Session != 0 && f.fenced(dfs.SessionID(q.Session))}
	if row != nil {
		out.Linked, out.Name, out.Parent = true, row.name, uint64(row.parent)
	}
	return out, nil
}

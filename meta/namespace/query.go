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
	if errors.As(err, &ref) && ref.locked != nil {
		return nil, &LockedError{Txn: ref.locked, text: ref.text}
	}
	if errors.As(err, &ref) {
		return nil, dfs.Errorf(ref.kind, "", "%s", ref.text)
	}
	return out, err
}

// view is one query's sight of a group.
type view struct {
	r     raftgroup.Reader
	g     dfs.GroupID
	st    *state
	locks uint64 // rows that are locked
	own   holder // transaction that asks; zero: none does
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
	v, out := view{r: r, g: g, st: st, locks: st.locks}, &wire.QueryResult{Version: uint64(st.version)}
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
	case *wire.Query_Entry:
		res, err := v.entryOf(q.Entry)
		out.Result = &wire.QueryResult_Entry{Entry: res}
		return out, err
	case *wire.Query_Above:
		res, err := v.above(q.Above, st)
		out.Result = &wire.QueryResult_Above{Above: res}
		return out, err
	case *wire.Query_Txn:
		res, err := v.txn(q.Txn, st)
		out.Result = &wire.QueryResult_Txn{Txn: res}
		return out, err
	}
	return nil, refuse(dfs.Unsupported, "query of an unknown kind")
}

// need returns an inode that must exist, and that nobody else decides about.
func (v view) need(ino dfs.Ino) (*inode, error) {
	if ino.Group() != v.g {
		return nil, refuse(dfs.Invalid, "inode %v is not of group %v", ino, v.g)
	}
	if err := v.pending(inodeKey(ino), true); err != nil {
		return nil, err
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

// dentry returns a directory's entry, nil when there is none.
func (v view) dentry(dir dfs.Ino, name []byte) (*dentry, error) {
	if err := v.pending(dentryKey(dir, name), false); err != nil {
		return nil, err
	}
	return readDentry(v.r, dir, name)
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
	n, err := v.need(dfs.Ino(q.Start))
	if err != nil {
		return nil, err
	}
	if !n.isDir() && len(q.Names) > 0 {
		return nil, refuse(dfs.NotDir, "inode %v is not a directory", n.ino)
	}
	if len(q.Names) == 0 {
		if err := v.pending(inodeKey(n.ino), false); err != nil {
			return nil, err
		}
	}
	out := &wire.WalkResult{Start: n.wire()}
	for i, name := range q.Names {
		if !n.isDir() {
			out.NotDir = true
			break
		}
		e, err := v.dentry(n.ino, name)
		if err != nil {
			return nil, err
		}
		if e == nil {
			out.Missing = true
			break
		}
		if e.ino.Group() != v.g {
			out.Next, out.NextType = uint64(e.ino), e.typ
			break
		}
		if n, err = v.entry(e.ino); err != nil {
			return nil, err
		}
		// Where a walk only leads through, what others enter does not matter.
		if err := v.pending(inodeKey(n.ino), i < len(q.Names)-1); err != nil {
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
// the answer grows too long, or one that is not the first hangs on a transaction:
// the caller asks again for the others.
func (v view) attr(q *wire.AttrQuery) (*wire.AttrResult, error) {
	if len(q.Inos) > maxInodes {
		return nil, refuse(dfs.TooLarge, "attributes of %d inodes: at most %d", len(q.Inos), maxInodes)
	}
	out, size := &wire.AttrResult{}, 0
	for _, ino := range q.Inos {
		if dfs.Ino(ino).Group() != v.g {
			return nil, refuse(dfs.Invalid, "inode %v is not of group %v", dfs.Ino(ino), v.g)
		}
		if err := v.pending(inodeKey(dfs.Ino(ino)), false); err != nil {
			if len(out.Attrs) > 0 && isLocked(err) {
				break
			}
			return nil, err
		}
		n, err := readInode(v.r, dfs.Ino(ino))
		if err != nil {
			return nil, err
		}
		a := &wire.Attr{}
		if n != nil {
			a = n.wire()
			if q.Below {
				if a.Below, err = v.below(n); err != nil {
					return nil, err
				}
			}
		}
		if size += proto.Size(a) + 4; size > MaxAnswer {
			break
		}
		out.Attrs = append(out.Attrs, a)
	}
	return out, nil
}

// readDir lists a page of a directory. It ends before a name that hangs on a
// transaction.
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
	upper := after(dentryKey(dir.ino, nil))
	held, locked, err := v.firstPending(lower, upper)
	if err != nil {
		return nil, err
	}
	if held != nil {
		upper = held
	}
	err = scan(v.r, lower, upper, func(key, value []byte) (bool, error) {
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
	if held != nil && !out.More {
		if len(out.Entries) == 0 && err == nil {
			return nil, locked
		}
		out.More = true
	}
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

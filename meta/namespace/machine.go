package namespace

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"dfsd/dfs"
	"dfsd/raftgroup"
	"dfsd/transport/wire"
)

// Limits of one group and one entry. Replicas must agree on them: they change
// only behind a feature level.
const (
	// MaxUnacknowledged is how far a session's sequence numbers may run ahead
	// of its floor: it bounds the replies kept for a session.
	MaxUnacknowledged = 1024

	// MaxLeased is how many unused inode numbers of a group a session may hold.
	MaxLeased = 4 * dfs.InoLease

	// MaxCut is how many extents one command may replace or cut off: it bounds
	// the rows an entry writes. At 4 MiB an extent it is 256 GiB of file.
	MaxCut = 1 << 16

	// MaxTrim is how many rows a trim may drop, and MaxSweep how many rows of
	// fenced sessions one entry deletes: both bound an entry's work.
	MaxTrim  = 4096
	MaxSweep = 4096

	// MaxMarks is how many sessions' marks one entry raises.
	MaxMarks = 1024

	// maxGroup is the highest number of a group.
	maxGroup = math.MaxUint16

	// maxText bounds the text of a refusal that comes with an entry (bytes).
	maxText = 4096

	// NewestLevel is the feature level of this release, LevelTransactions the first
	// one with operations over several groups.
	NewestLevel       = 1
	LevelTransactions = 1

	// LevelAccounts is the first level with accounts. It is that of transactions: so
	// no name leads to a file of another group that was made before its group kept
	// accounts, and a group that begins to keep them finds in its own rows all it has
	// to count.
	LevelAccounts = LevelTransactions

	// MaxLinks is the greatest link count, and MaxDepth the longest walk towards
	// the root when a directory moves.
	MaxLinks = 1 << 30
	MaxDepth = 4096

	// maxVersion bounds what an entry may propose (the year 2200): times in
	// nanoseconds stay within 63 bits for the versions counted up from it too.
	maxVersion = dfs.Version(7_258_118_400_000) << 16
)

// Options configures a Machine. The zero value is right for every cluster.
type Options struct {
	// ForgetReplies makes the machine carry out every retry again. It is a
	// planted bug: tests prove with it that they notice.
	ForgetReplies bool

	// GuessGarbage makes Verdicts call a block garbage that nothing names, though
	// its session may still commit it. It is a planted bug like the other one.
	GuessGarbage bool

	// TakeLateShares makes the machine carry out a share that a late request has
	// prepared once more, after it was carried out. It is a planted bug like the
	// other ones.
	TakeLateShares bool

	// SkipShareLocks makes participants lock nothing for a share, and ForgetCommits
	// makes a commit leave no record. They are planted bugs too.
	SkipShareLocks bool
	ForgetCommits  bool
}

// Machine applies the entries of one namespace group. It holds no state: all
// of it is in the rows. It implements raftgroup.StateMachine.
type Machine struct {
	group dfs.GroupID
	opts  Options
}

// New returns the state machine of a namespace group.
func New(g dfs.GroupID, opts Options) *Machine { return &Machine{group: g, opts: opts} }

// refusal is the one kind of error that becomes a reply. All others are
// damage or broken invariants, and stop the replica.
type refusal struct {
	kind     dfs.Kind
	text     string
	locked   *wire.TxnID // of a key that a transaction holds: which one
	outdated bool        // what was planned or begun is not so any more: begin again
}

func (r *refusal) Error() string { return r.text }

func refuse(kind dfs.Kind, format string, args ...any) error {
	return &refusal{kind: kind, text: fmt.Sprintf(format, args...)}
}

// broken reports an invariant that does not hold.
func broken(format string, args ...any) error {
	return dfs.Errorf(dfs.Internal, "apply", format, args...)
}

var deterministic = proto.MarshalOptions{Deterministic: true}

// Apply implements raftgroup.StateMachine: the entry is an encoded
// wire.LogEntry, the reply an encoded wire.Result. Every refusal is a reply; an
// error is damage or a broken invariant.
func (m *Machine) Apply(tx raftgroup.Tx, e raftgroup.Entry) ([]byte, error) {
	reply, err := m.apply(tx, e.Data)
	var r *refusal
	if errors.As(err, &r) {
		return encodeRefusal(r, 0)
	}
	return reply, err
}

func encodeRefusal(r *refusal, version dfs.Version) ([]byte, error) {
	return deterministic.Marshal(&wire.Result{Kind: uint32(r.kind), Text: r.text, Version: uint64(version), Locked: r.locked, Outdated: r.outdated})
}

func (m *Machine) apply(tx raftgroup.Tx, data []byte) ([]byte, error) {
	le := &wire.LogEntry{}
	if err := proto.Unmarshal(data, le); err != nil {
		return nil, refuse(dfs.Invalid, "malformed log entry")
	}
	if dfs.Version(le.Version) > maxVersion {
		return nil, refuse(dfs.Invalid, "version %d is past the year 2200", le.Version)
	}
	st, err := readState(tx)
	if err != nil {
		return nil, err
	}
	if op := le.GetInit(); op != nil {
		return m.init(tx, st, dfs.Version(le.Version), op)
	}
	if st == nil {
		return nil, refuse(dfs.Unavailable, "group %v has no state yet", m.group)
	}
	c := newChange(tx, st, dfs.Version(le.Version))
	c.opts = m.opts
	switch op := le.Entry.(type) {
	case *wire.LogEntry_Command:
		return m.command(c, op.Command)
	case *wire.LogEntry_Batch:
		return m.batch(tx, dfs.Version(le.Version), op.Batch)
	case *wire.LogEntry_Fence:
		err = c.fence(op.Fence)
	case *wire.LogEntry_Trim:
		err = c.trim(op.Trim)
	case *wire.LogEntry_Deleted:
		err = c.deleted(op.Deleted)
	case *wire.LogEntry_Recovered:
		err = c.recovered(op.Recovered)
	case *wire.LogEntry_Acknowledge:
		c.st.recovered, c.wrote = 0, true
	case *wire.LogEntry_Marks:
		err = c.marks(op.Marks)
	case *wire.LogEntry_Resolve:
		_, err = c.resolve(op.Resolve)
	case *wire.LogEntry_Level:
		err = c.raiseLevel(op.Level)
	case *wire.LogEntry_TxnBegin:
		return m.begin(c, op.TxnBegin)
	case *wire.LogEntry_TxnPrepare:
		return c.reply(c.prepare(op.TxnPrepare))
	case *wire.LogEntry_TxnCommit:
		return c.commit(op.TxnCommit)
	case *wire.LogEntry_TxnAbort:
		return c.abort(op.TxnAbort)
	case *wire.LogEntry_TxnFinish:
		err = c.finishPart(op.TxnFinish)
	case *wire.LogEntry_Tally:
		err = c.tally(op.Tally)
	case *wire.LogEntry_Absorb:
		return c.reply(c.absorb(op.Absorb))
	case *wire.LogEntry_Reported:
		err = c.reported(op.Reported)
	case *wire.LogEntry_TxnDrop:
		err = c.dropRecords(op.TxnDrop)
	default:
		err = refuse(dfs.Unsupported, "log entry of an unknown kind")
	}
	if err != nil {
		return nil, err
	}
	version, err := c.finish()
	if err != nil {
		return nil, err
	}
	return deterministic.Marshal(&wire.Result{Version: uint64(version)})
}

// init gives the group its first state.
func (m *Machine) init(tx raftgroup.Tx, st *state, version dfs.Version, op *wire.InitOp) ([]byte, error) {
	switch {
	case st != nil:
		return nil, refuse(dfs.Exist, "group %v has state", m.group)
	case dfs.GroupID(op.Group) != m.group || op.Group > math.MaxUint16 || op.Group == 0:
		return nil, refuse(dfs.Invalid, "first state of group %d for group %d", op.Group, m.group)
	}
	if err := checkClass(op.DefaultClass); err != nil {
		return nil, err
	}
	if op.Level > NewestLevel {
		return nil, refuse(dfs.Unsupported, "feature level %d: this release knows %d", op.Level, NewestLevel)
	}
	st = &state{group: m.group, next: dfs.RootIno.Local() + 1, defaultClass: op.DefaultClass, level: op.Level}
	c := newChange(tx, st, version)
	if dfs.RootIno.Group() == m.group {
		c.add(&inode{
			ino: dfs.RootIno, typ: wire.FileType_DIR, mode: 0o1777, nlink: 2, parent: dfs.RootIno, class: op.DefaultClass,
			atime: c.now, mtime: c.now, ctime: c.now,
		})
	}
	c.wrote = true
	if _, err := c.finish(); err != nil {
		return nil, err
	}
	return deterministic.Marshal(&wire.Result{Version: uint64(c.version)})
}

// raiseLevel has the group do what every member of it knows by now.
func (c *change) raiseLevel(op *wire.LevelOp) error {
	switch {
	case op.GetLevel() > NewestLevel:
		return refuse(dfs.Unsupported, "feature level %d: this release knows %d", op.GetLevel(), NewestLevel)
	case op.Level > c.st.level:
		before := c.st.level
		c.st.level, c.wrote = op.Level, true
		if before < LevelAccounts && op.Level >= LevelAccounts {
			return c.beginCounting()
		}
	}
	return nil
}

// Level returns the feature level of a group.
func Level(r raftgroup.Reader) (uint32, error) {
	st, err := readState(r)
	if st == nil {
		return 0, err
	}
	return st.level, err
}

func checkClass(class string) error {
	if class == "" {
		return nil
	}
	if _, err := dfs.ParseClass(class); err != nil {
		return refuse(dfs.Invalid, "storage class %q is not known", class)
	}
	return nil
}

package sim

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"dfsd/client"
	"dfsd/dfs"
	"dfsd/sim/bubble"
)

// plain is a tree in memory.
type plain struct {
	dir  bool
	kids map[string]*plain
}

// lookup returns the directory of a path and what has its name.
func (p *plain) lookup(path string) (dir *plain, name string, at *plain) {
	names := strings.Split(strings.TrimPrefix(path, "/"), "/")
	dir = p
	for _, n := range names[:len(names)-1] {
		if dir = dir.kids[n]; dir == nil || !dir.dir {
			return nil, "", nil
		}
	}
	name = names[len(names)-1]
	return dir, name, dir.kids[name]
}

func (p *plain) holds(other *plain) bool {
	return p == other || slices.ContainsFunc(slices.Collect(maps.Values(p.kids)), func(k *plain) bool { return k.holds(other) })
}

// do is what an operation comes to: the kinds of error that it may be refused with,
// none when it is done. Where several things are wrong any of them may be said.
func (p *plain) do(verb, path, to string) (kinds []dfs.Kind) {
	no := func(is bool, kind dfs.Kind) {
		if is {
			kinds = append(kinds, kind)
		}
	}
	dir, name, at := p.lookup(path)
	if dir == nil {
		return []dfs.Kind{dfs.NotExist, dfs.NotDir}
	}
	make := verb == "mkdir" || verb == "create"
	no(make && at != nil, dfs.Exist)
	if !make && at == nil {
		return []dfs.Kind{dfs.NotExist, dfs.NotDir} // or where it would go does not lead there
	}
	if len(kinds) > 0 {
		return kinds
	}
	switch verb {
	case "mkdir", "create":
		dir.kids[name] = &plain{dir: verb == "mkdir", kids: map[string]*plain{}}
		return nil
	case "unlink":
		no(at.dir, dfs.IsDir)
	case "rmdir":
		no(!at.dir, dfs.NotDir)
		no(len(at.kids) > 0, dfs.NotEmpty)
	}
	if verb == "unlink" || verb == "rmdir" {
		if len(kinds) == 0 {
			delete(dir.kids, name)
		}
		return kinds
	}
	toDir, toName, over := p.lookup(to)
	if toDir == nil {
		return []dfs.Kind{dfs.NotExist, dfs.NotDir}
	}
	if verb == "link" {
		no(over != nil, dfs.Exist)
		no(at.dir, dfs.Permission)
		if len(kinds) == 0 {
			toDir.kids[toName] = at
		}
		return kinds
	}
	if over == at {
		return nil
	}
	no(at.dir && at.holds(toDir), dfs.Invalid)
	no(over != nil && at.dir && !over.dir, dfs.NotDir)
	no(over != nil && !at.dir && over.dir, dfs.IsDir)
	no(over != nil && len(over.kids) > 0, dfs.NotEmpty)
	if len(kinds) == 0 {
		delete(dir.kids, name)
		toDir.kids[toName] = at
	}
	return kinds
}

// list draws a tree.
func (p *plain) list(path string) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(p.kids)) {
		k := p.kids[name]
		out = append(out, fmt.Sprintf("%s/%s %v", path, name, k.dir))
		out = append(out, k.list(path+"/"+name)...)
	}
	return out
}

func listAll(ctx context.Context, p *Peer, path string) (out []string, err error) {
	for e, err := range p.ReadDir(ctx, "/"+strings.TrimPrefix(path, "/"), true) {
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s/%s %v", path, e.Name, e.Type == client.TypeDir))
		if e.Type == client.TypeDir {
			below, err := listAll(ctx, p, path+"/"+e.Name)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		}
	}
	return out, nil
}

func carryOutPlain(ctx context.Context, p *Peer, verb, path, to string) (err error) {
	switch verb {
	case "mkdir":
		_, err = p.Mkdir(ctx, path, 0o755)
	case "create":
		_, err = p.PutFile(ctx, path, client.PutOptions{}, strings.NewReader(""))
	case "unlink":
		err = p.Remove(ctx, path)
	case "rmdir":
		err = p.Rmdir(ctx, path)
	case "link":
		_, err = p.Link(ctx, path, to)
	case "rename":
		err = p.Rename(ctx, path, to, false)
	}
	return err
}

// TestGroupsAreOneTree does the same random operations to a cluster of several groups,
// which loses answers, and to a plain tree in memory.
func TestGroupsAreOneTree(t *testing.T) {
	seeds := uint64(4)
	if bubble.Race {
		seeds = 1
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		bubble.Test(t, func(t *testing.T) {
			c, err := New(Config{Seed: seed, Stores: 1, Class: dfs.Replicated(1), Logger: testLogger()})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			p := open(t, c, "client")
			defer p.Close()
			awaitReady(t, p)
			random := rand.New(rand.NewPCG(seed, 7))
			path := func() (out string) {
				for range 1 + random.IntN(3) {
					out += "/" + string('a'+rune(random.IntN(3)))
				}
				return out
			}
			want, kinds, groups := &plain{dir: true, kids: map[string]*plain{}}, map[string]int{}, map[dfs.GroupID]bool{}
			verbs := []string{"mkdir", "mkdir", "mkdir", "create", "create", "unlink", "rmdir", "link", "rename", "rename", "rename", "rename"}
			for range 600 {
				verb, from, to := verbs[random.IntN(len(verbs))], path(), path()
				refused := want.do(verb, from, to)
				err := carryOutPlain(t.Context(), p, verb, from, to)
				if err == nil && len(refused) > 0 || err != nil && !slices.Contains(refused, dfs.KindOf(err)) {
					t.Fatalf("seed %d: %s %s %s: %v, want one of %v", seed, verb, from, to, err, refused)
				}
				kinds[fmt.Sprint(verb, " ", err == nil)]++
				if a, err := p.Lstat(t.Context(), from); err == nil {
					groups[a.Ino.Group()] = true
				}
			}
			list, err := listAll(t.Context(), p, "")
			if err != nil || !slices.Equal(list, want.list("")) {
				t.Errorf("seed %d: the tree is\n%s\nwant\n%s\n%v", seed, strings.Join(list, "\n"), strings.Join(want.list(""), "\n"), err)
			}
			if len(groups) < 3 || kinds["rename true"] < 10 {
				t.Errorf("seed %d: groups %v, %v: the test proves nothing", seed, groups, kinds)
			}
			if err := quiet(c); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		})
	}
}

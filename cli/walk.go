package cli

import (
	"context"
	"sync"
)

// walk works through trees of directories, several at a time. A directory is
// entered before the ones in it, and left once everything below it has been
// left. The last found is entered first, so that what waits stays small: the
// directories beside the ones on the way down.
type walk[T any] struct {
	workers int
	enter   func(ctx context.Context, dir T) []T // deals with dir and its entries; returns the directories in it
	leave   func(ctx context.Context, dir T)

	mu    sync.Mutex // guards what follows, and rest of every branch
	more  *sync.Cond // the stack grew, or open became 0, or ctx ended
	stack []*branch[T]
	open  int // branches that were found and not left
}

// branch is a directory of a walk.
type branch[T any] struct {
	parent *branch[T] // nil: a root
	dir    T
	rest   int // itself, until it was entered, and the directories in it that were not left
}

// run walks the roots and waits for the end. When ctx ends first it returns as
// soon as what is under way has ended.
func (w *walk[T]) run(ctx context.Context, roots ...T) {
	w.more = sync.NewCond(&w.mu)
	w.push(nil, roots)
	stop := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.more.Broadcast()
	})
	defer stop()
	var wg sync.WaitGroup
	for range w.workers {
		wg.Go(func() {
			for {
				b := w.next(ctx)
				if b == nil {
					return
				}
				w.push(b, w.enter(ctx, b.dir))
				w.finish(ctx, b)
			}
		})
	}
	wg.Wait()
}

// push adds directories, so that the first of them is entered next.
func (w *walk[T]) push(parent *branch[T], dirs []T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(dirs) - 1; i >= 0; i-- {
		w.stack = append(w.stack, &branch[T]{parent: parent, dir: dirs[i], rest: 1})
	}
	w.open += len(dirs)
	if parent != nil {
		parent.rest += len(dirs)
	}
	w.more.Broadcast()
}

// next waits for a directory to enter; nil: there will be none.
func (w *walk[T]) next(ctx context.Context) *branch[T] {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if ctx.Err() != nil || w.open == 0 {
			return nil
		}
		if n := len(w.stack); n > 0 {
			b := w.stack[n-1]
			w.stack = w.stack[:n-1]
			return b
		}
		w.more.Wait()
	}
}

// finish takes one off what a branch waits for, and leaves it, and then those
// above it, when that was the last.
func (w *walk[T]) finish(ctx context.Context, b *branch[T]) {
	for b != nil {
		w.mu.Lock()
		b.rest--
		last := b.rest == 0
		w.mu.Unlock()
		if !last {
			return
		}
		if ctx.Err() == nil {
			w.leave(ctx, b.dir)
		}
		w.mu.Lock()
		if w.open--; w.open == 0 {
			w.more.Broadcast()
		}
		w.mu.Unlock()
		b = b.parent
	}
}

// slots bounds how many files are worked on at a time, in all directories.
type slots chan struct{}

// batch is the entries of one directory that are worked on.
type batch struct {
	slots slots
	wg    sync.WaitGroup
}

// do runs fn once there is a slot; not when ctx ends first.
func (b *batch) do(ctx context.Context, fn func()) {
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	b.wg.Go(func() {
		defer func() { <-b.slots }()
		fn()
	})
}

// linkTable remembers what was made of files with several names, so that their
// other names become links of it. K is what a file is known by at the source, V
// at the destination.
type linkTable[K comparable, V any] struct {
	mu    sync.Mutex // guards files and left of its elements
	files map[K]*linkedFile[V]
}

type linkedFile[V any] struct {
	done chan struct{} // closed when made
	made V
	ok   bool // it was made; read after done
	left int  // names still to come
}

// first returns what was made of a file with so many names, after waiting for
// it. For the first name it returns settle, which the caller must call with what
// it made of it, or with ok false.
func (t *linkTable[K, V]) first(ctx context.Context, key K, names int) (made V, settle func(V, bool), err error) {
	for {
		t.mu.Lock()
		f := t.files[key]
		if f == nil {
			if t.files == nil {
				t.files = make(map[K]*linkedFile[V])
			}
			f = &linkedFile[V]{done: make(chan struct{}), left: names - 1}
			t.files[key] = f
			t.mu.Unlock()
			return made, func(v V, ok bool) { t.settle(key, f, v, ok) }, nil
		}
		t.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return made, nil, context.Cause(ctx)
		}
		if f.ok {
			t.mu.Lock()
			if f.left--; f.left <= 0 && t.files[key] == f {
				delete(t.files, key)
			}
			t.mu.Unlock()
			return f.made, nil, nil
		}
	}
}

func (t *linkTable[K, V]) settle(key K, f *linkedFile[V], v V, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.made, f.ok = v, ok
	if !ok || f.left <= 0 {
		delete(t.files, key)
	}
	close(f.done)
}

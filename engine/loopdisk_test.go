//go:build e2e

package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// loopDisk is an ext4 in a sparse file, mounted through a loop device. The
// device goes with its last mount, and the mounts with the last process of
// their namespace: nothing is left behind however the test ends.
type loopDisk struct {
	image   string
	point   string // where it is mounted
	options string // of the mount
}

// newLoopDisk makes the file system. It is not mounted yet.
func newLoopDisk(dir string, bytes int64, options string) (*loopDisk, error) {
	d := &loopDisk{image: filepath.Join(dir, "image"), point: filepath.Join(dir, "mnt"), options: options}
	if err := os.Mkdir(d.point, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return nil, err
	}
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.image).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return d, nil
}

// mount attaches a free loop device and mounts it; what a power cut left is
// recovered from the journal.
func (d *loopDisk) mount() error {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	image, err := os.OpenFile(d.image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer image.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("a free loop device: %w", err)
		}
		name := fmt.Sprintf("/dev/loop%d", n)
		device, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); errors.Is(err, unix.EBUSY) {
			_ = device.Close() // somebody else was faster
			continue
		}
		if err == nil {
			err = unix.Mount(name, d.point, "ext4", unix.MS_NODEV|unix.MS_NOSUID, d.options)
		}
		// The mount holds the device now; without one it is cleared here.
		return errors.Join(err, device.Close())
	}
	return errors.New("every free loop device was taken by somebody else")
}

func (d *loopDisk) unmount() error { return unix.Unmount(d.point, 0) }

const (
	fsIocShutdown        = 0x8004587d // _IOR('X', 125, __u32)
	shutdownWithoutFlush = 2          // neither data nor journal are written any more
)

// cutPower stops the file system: what the device was not given is gone, and
// every later write and sync fails.
func (d *loopDisk) cutPower() error {
	f, err := os.Open(d.point)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), fsIocShutdown, shutdownWithoutFlush); err != nil {
		return fmt.Errorf("FS_IOC_SHUTDOWN: %w", err)
	}
	return nil
}

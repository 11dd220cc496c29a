package intercept

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxInterpreters is how many scripts may stand in a row (BINPRM_MAX_RECURSION
// of the kernel's fs/exec.c).
const maxInterpreters = 4

// CheckProgram tells why a program could not work under a filter that is
// installed already, or nil: it is a 32-bit one, whose calls the filter does
// not see, or, where the filter took no_new_privs, one that gets rights from
// its file. The error is an *Unsupported, and EPERM in the second case. Of a
// script it looks at the interpreter. What cannot be read, or is not
// executable, is left for execve(2) to judge.
func CheckProgram(path string, noNewPrivs bool) error {
	for range maxInterpreters {
		next, err := checkOne(path, noNewPrivs)
		if next == "" {
			return err
		}
		path = next
	}
	return nil
}

// checkOne returns the interpreter, where the file at path is a script: the
// bits of a script itself mean nothing.
func checkOne(path string, noNewPrivs bool) (interpreter string, err error) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", nil
	}
	begin := beginning(path)
	if interpreter := interpreterOf(begin); interpreter != "" {
		return interpreter, nil
	}
	if isELF32(begin) {
		return "", &Unsupported{Reason: "a 32-bit program cannot be intercepted"}
	}
	if !noNewPrivs {
		return "", nil
	}
	if what := privilegeOf(path, info); what != "" {
		return "", &Unsupported{
			Reason: "it " + what + ", which does not work under interception (no_new_privs)", Err: unix.EPERM,
		}
	}
	return "", nil
}

// beginning is as much of a file as the kernel looks at (BINPRM_BUF_SIZE of
// linux/binfmts.h).
func beginning(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	begin := make([]byte, 256)
	n, err := io.ReadFull(f, begin)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return begin[:n]
}

func interpreterOf(begin []byte) string {
	line, ok := bytes.CutPrefix(begin, []byte("#!"))
	if !ok {
		return ""
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	if words := bytes.Fields(line); len(words) > 0 {
		return string(words[0])
	}
	return ""
}

func isELF32(begin []byte) bool {
	const class, class32 = 4, 1 // EI_CLASS and ELFCLASS32 of elf.h
	return bytes.HasPrefix(begin, []byte("\x7fELF")) && len(begin) > class && begin[class] == class32
}

// privilegeOf says what would make the program more than the process that
// becomes it.
func privilegeOf(path string, info os.FileInfo) string {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) == nil && fs.Flags&unix.ST_NOSUID != 0 {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case ok && st.Mode&unix.S_ISUID != 0 && int(st.Uid) != os.Geteuid():
		return "is setuid"
	case ok && st.Mode&unix.S_ISGID != 0 && st.Mode&unix.S_IXGRP != 0 && int(st.Gid) != os.Getegid():
		return "is setgid"
	case fileCapabilities(path)&^ownCapabilities().permitted != 0:
		return "has file capabilities"
	}
	return ""
}

// fileCapabilities reads the permitted set of struct vfs_cap_data
// (linux/capability.h), whose later revisions only add to it.
func fileCapabilities(path string) uint64 {
	const revision1, revision2, low, high = 12, 20, 4, 12
	data := make([]byte, 64)
	n, err := unix.Getxattr(path, "security.capability", data)
	if err != nil || n < revision1 {
		return 0
	}
	set := uint64(binary.LittleEndian.Uint32(data[low:]))
	if n >= revision2 {
		set |= uint64(binary.LittleEndian.Uint32(data[high:])) << 32
	}
	return set
}

type capabilities struct{ effective, permitted uint64 }

func ownCapabilities() capabilities {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return capabilities{}
	}
	join := func(low, high uint32) uint64 { return uint64(low) | uint64(high)<<32 }
	return capabilities{
		effective: join(data[0].Effective, data[1].Effective),
		permitted: join(data[0].Permitted, data[1].Permitted),
	}
}

// NeedsNoNewPrivs tells whether Install would have to set no_new_privs now. It
// does not where it is set already: then it costs nothing more.
func NeedsNoNewPrivs() bool {
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return err == nil && set == 0 && ownCapabilities().effective&(1<<unix.CAP_SYS_ADMIN) == 0
}

package meta

import "testing"

// TestCompleteNeverDeniesWhatIsThere: only a name that was never made in a
// directory that was made here is called absent.
func TestCompleteNeverDeniesWhatIsThere(t *testing.T) {
	var c complete
	mkdir := func(parent, ino Ino, name string) {
		c.add(&Change{
			Inodes: []InodeChange{{After: Attr{Ino: ino, Mode: ModeDir, Nlink: 2}}},
			Names:  []NameChange{{Parent: parent, Name: name, After: ino}},
		})
	}
	mkdir(RootIno, 2, "d")
	if c.absent(RootIno, "unknown") {
		t.Error("the root was not made here: its names are not known")
	}
	if !c.absent(2, "x") {
		t.Error("nothing was made in d: x is absent")
	}
	mkdir(2, 3, "x")
	if c.absent(2, "x") || !c.absent(2, "y") {
		t.Error("x was made in d, y was not")
	}
	// Moved in, and moved away: perhaps there.
	c.add(&Change{Names: []NameChange{{Parent: RootIno, Name: "a", Before: 9}, {Parent: 2, Name: "y", After: 9}}})
	c.add(&Change{Names: []NameChange{{Parent: 2, Name: "y", Before: 9}}})
	if c.absent(2, "y") {
		t.Error("y was made in d once: nothing may be said of it")
	}
	// Removed: nothing is said any more, also not when it gets a name again.
	c.add(&Change{Inodes: []InodeChange{{Before: &Attr{Ino: 3, Mode: ModeDir, Nlink: 2}, After: Attr{Ino: 3, Mode: ModeDir}}}})
	if c.absent(3, "z") {
		t.Error("x was removed: nothing is known of it")
	}
	for i := range completeMax + 1 {
		mkdir(2, Ino(10+i), "n")
	}
	if len(c.dirs) > 100 || c.absent(2, "q") {
		t.Error("the bound does not hold")
	}
}

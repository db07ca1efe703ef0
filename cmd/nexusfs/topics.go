package main

import "github.com/spf13/cobra"

// topics are pages of help that belong to no single verb.
func topics() []*cobra.Command {
	page := func(name, short, long string) *cobra.Command {
		return &cobra.Command{Use: name, Short: short, Long: long}
	}
	return []*cobra.Command{
		page("exit-codes", "with which code commands end", exitCodesText),
		page("options", "the options of mount -o", optionsText),
		page("durability", "what survives a crash, and when", durabilityText),
	}
}

const exitCodesText = `Commands end with

  0    done
  1    the operation failed, or a check found something (fsck)
  2    the command line or the configuration is wrong
  3    the store: missing, of another product, made by a newer nexusfs, damaged,
       full, not yours, or in use by another process
  4    the mount: mountpoint missing or busy, or FUSE not available
  5    the daemon does not answer, does not answer this user, or there is none
       and the command needs one
  6    the path, version or name does not exist
  130  interrupted

Called by mount(8) and umount(8) as a helper it ends with their codes: 1 for a
wrong command line, 32 for a failure.`

const optionsText = `Options of mount -o, separated by commas; later ones win. The configuration's come
first, then the named store's, then -o, then the flags of nexusfs mount.

  ro, rw                  read-only or not
  allow_other             let other users in; mode bits and ACLs guard the files.
                          Always on for root's mounts; an ordinary user needs
                          user_allow_other in /etc/fuse.conf for it
  default_permissions     always on
  dev, nodev, suid, nosuid, exec, noexec
                          as in mount(8); an ordinary user's mount is nodev,nosuid
  durability=LEVEL        relaxed or strict (nexusfs help durability)
  sync, dirsync           the same as durability=strict
  content=PLACE           of a zone in a database, at its first mount: where its
                          content lies, a directory or s3://bucket/prefix
  history=KEEP            which versions stay: off, a number for each file (30v),
                          an age (7d, 12h, 2w), or both (30v,7d: a version goes
                          when it is older than 7 days or not among the newest
                          30). 30v,7d is the default
  agent=NAME, task=NAME   recorded with every operation, as declared
  metrics=ADDRESS         Prometheus metrics, such as 127.0.0.1:9560
  fsname=NAME             what the mount table shows as the source

For mount(8), fstab and systemd these are accepted and mean nothing more here:
defaults, auto, noauto, nofail, user, users, owner, group, _netdev, x-*, comment=,
nonempty, async, and the atime options: reading never updates atime.
A comma in a value is written \, or the value is put into double quotes.`

const durabilityText = `relaxed (the default of a store in a directory)
  When the daemon is killed, nothing that was acknowledged is lost: names,
  attributes, and content that was closed or fsynced. Content written to a file
  that is still open and not fsynced may be lost: at most the last 5 seconds or
  64 MiB of it. When the machine loses power, everything up to the last fsync(2)
  of any file is there, and everything older than about a second; what is lost is
  the end of the history, never something from its middle.

strict (the default of a zone in a database)
  Every operation is durable before it is acknowledged, also against loss of
  power. Concurrent operations share one flush of the disk. On a database it
  promises what the server's own replication does.

fsync(2) tells the truth at both levels. sync(2) and sync(1) do not reach FUSE
filesystems: use nexusfs sync. nexusfs umount makes everything durable.
When the disk refuses a flush, the daemon says so, refuses changes from then on,
and does not pretend that a second try succeeded.`

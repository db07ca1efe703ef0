package sqlite

// stmtID names a prepared statement.
type stmtID int

const (
	stBegin stmtID = iota
	stBeginRead
	stCommit
	stRollback
	stSavepoint
	stRelease
	stRollbackTo

	stInode
	stLookup
	stTarget
	stList
	stListCookie
	stListAttrs
	stListAttrsCookie
	stXattr
	stXattrNames
	stExtents
	stBlob
	stHead
	stUsage

	stInodeInsert
	stInodeArchive
	stInodeArchiveDir
	stInodeUpdate
	stInodeUpdateDir
	stDirDelta
	stParent
	stInodeBytes
	stInodeGrow
	stHint
	stNameInsert
	stNameArchive
	stNameDelete
	stNameReplace
	stXattrArchive
	stXattrSet
	stXattrDelete

	stExtentLast
	stExtentSum
	stExtentArchive
	stExtentArchiveRange
	stExtentDelete
	stExtentDeleteRange
	stExtentTrim
	stExtentInsert
	stBlobFind
	stBlobInsert
	stBlobReplace
	stBlobRefs

	stVersionFirst
	stVersionInsert
	stVersionMove
	stVersionMoveFirst

	stActorInsert
	stRecordInsert
	stHeadUpdate
	stUsageUpdate
	stUsageInsert
	stmtCount
)

// attrCols are an inode's columns in the order of scanAttr.
const attrCols = `ino,mode,uid,gid,nlink,rdev,flags,size,bytes,entries,atime,mtime,ctime,btime,parent,creator,rev,content_rev,version`

// inodeCols are all columns behind the key, for history and back.
const inodeCols = `mode,uid,gid,nlink,rdev,flags,size,bytes,entries,atime,mtime,ctime,btime,parent,cookie,creator,rev,content_rev,version,target`

const joinedAttrCols = `i.ino,i.mode,i.uid,i.gid,i.nlink,i.rdev,i.flags,i.size,i.bytes,i.entries,i.atime,i.mtime,i.ctime,i.btime,i.parent,i.creator,i.rev,i.content_rev,i.version`

const extentCols = `e.off,e.len,e.blob_off,e.begin,b.id,b.size,b.place,b.segment,b.offset`

// A LIMIT that is a parameter makes SQLite prepare the statement anew whenever
// the parameter changes (it looks at its value when it plans), which costs more
// than most reads: callers stop stepping instead. OR FAIL where an INSERT takes
// its rows from a SELECT: without it SQLite keeps a copy of every page that the
// statement changes, to take it back alone; here a statement that fails takes
// the transaction or its savepoint with it.
var statements = [stmtCount]string{
	stBegin:      `BEGIN IMMEDIATE`,
	stBeginRead:  `BEGIN`,
	stCommit:     `COMMIT`,
	stRollback:   `ROLLBACK`,
	stSavepoint:  `SAVEPOINT change`,
	stRelease:    `RELEASE change`,
	stRollbackTo: `ROLLBACK TO change`,

	stInode: `SELECT ` + attrCols + ` FROM inodes WHERE ino=?1`,
	stLookup: `SELECT ` + joinedAttrCols + ` FROM dentries d CROSS JOIN inodes i ON i.ino=d.ino
		WHERE d.parent=?1 AND d.cookie=?2 AND d.name=?3`,
	stTarget: `SELECT target FROM inodes WHERE ino=?1 AND mode & 61440 = 40960`,
	stList:   `SELECT cookie,name,ino,type FROM dentries WHERE parent=?1 AND cookie>?2 ORDER BY cookie`,
	stListCookie: `SELECT cookie,name,ino,type FROM dentries WHERE parent=?1 AND cookie=?2 AND name>?3
		ORDER BY name`,
	stListAttrs: `SELECT d.cookie,d.name,` + joinedAttrCols + ` FROM dentries d CROSS JOIN inodes i ON i.ino=d.ino
		WHERE d.parent=?1 AND d.cookie>?2 ORDER BY d.cookie`,
	stListAttrsCookie: `SELECT d.cookie,d.name,` + joinedAttrCols + ` FROM dentries d CROSS JOIN inodes i ON i.ino=d.ino
		WHERE d.parent=?1 AND d.cookie=?2 AND d.name>?3 ORDER BY d.name`,
	stXattr:      `SELECT value FROM xattrs WHERE ino=?1 AND name=?2`,
	stXattrNames: `SELECT name FROM xattrs WHERE ino=?1 ORDER BY name`,
	stExtents: `SELECT ` + extentCols + `, CASE WHEN ?4 THEN b.data END FROM extents e CROSS JOIN blobs b ON b.blob=e.blob
		WHERE e.ino=?1 AND e.off<?3 AND e.off+e.len>?2
		AND e.off>=coalesce((SELECT max(off) FROM extents WHERE ino=?1 AND off<=?2), ?2)
		ORDER BY e.off`,
	stBlob:  `SELECT size,place,segment,offset FROM blobs WHERE zone=?1 AND id=?2 AND condemned IS NULL`,
	stHead:  `SELECT c.rev,c.head,c.barrier,c.reserved,z.epoch,c.sessions FROM counters c CROSS JOIN zones z ON z.zone=c.zone WHERE c.zone=?1 AND c.kind=0 AND c.id=0`,
	stUsage: `SELECT inodes,bytes,history FROM counters WHERE zone=?1 AND kind=0 AND id=0`,

	stInodeInsert: `INSERT INTO inodes(ino,` + inodeCols + `)
		VALUES(?1,?2,?3,?4,?5,?6,?7,?8,0,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20)`,
	stInodeArchive: `INSERT OR FAIL INTO inode_history(ino,"end",` + inodeCols + `)
		SELECT ino,?3,` + inodeCols + ` FROM inodes WHERE ino=?1 AND rev=?2`,
	stInodeArchiveDir: `INSERT OR FAIL INTO inode_history(ino,"end",` + inodeCols + `)
		SELECT ino,?2,` + inodeCols + ` FROM inodes WHERE ino=?1 AND (nlink>0)=(?9=0) AND (?3 OR entries=0)
		AND mode=?4 AND uid=?5 AND gid=?6 AND flags=?7 AND parent=?8`,
	stInodeUpdate: `UPDATE inodes SET mode=?2,uid=?3,gid=?4,nlink=?5,rdev=?6,flags=?7,size=?8,atime=?9,mtime=?10,
		ctime=?11,rev=?12,content_rev=?13,version=?14,bytes=bytes+?15,
		parent=coalesce(?16,parent),cookie=coalesce(?17,cookie) WHERE ino=?1`,
	stInodeUpdateDir: `UPDATE inodes SET mode=?2,uid=?3,gid=?4,flags=?5,nlink=iif(?6,nlink+?7,0),entries=entries+?8,
		atime=coalesce(?9,atime),mtime=coalesce(?10,mtime),ctime=coalesce(?11,ctime),rev=?12,
		parent=?13,cookie=coalesce(?14,cookie) WHERE ino=?1`,
	stDirDelta:   `UPDATE inodes SET entries=entries+?2,nlink=nlink+?3,mtime=?4,ctime=?4,rev=?5 WHERE ino=?1 AND nlink>0`,
	stParent:     `SELECT parent FROM inodes WHERE ino=?1 AND nlink>0`,
	stInodeBytes: `SELECT bytes FROM inodes WHERE ino=?1`,
	stInodeGrow:  `UPDATE inodes SET bytes=bytes+?2 WHERE ino=?1`,
	stHint:       `UPDATE inodes SET parent=?2,cookie=?3 WHERE ino=?1`,
	stNameInsert: `INSERT INTO dentries(parent,cookie,name,ino,type,begin) VALUES(?1,?2,?3,?4,?5,?6)`,
	stNameArchive: `INSERT OR FAIL INTO dentry_history(parent,cookie,name,"end",ino,type,begin)
		SELECT parent,cookie,name,?5,ino,type,begin FROM dentries WHERE parent=?1 AND cookie=?2 AND name=?3 AND ino=?4`,
	stNameDelete:  `DELETE FROM dentries WHERE parent=?1 AND cookie=?2 AND name=?3`,
	stNameReplace: `UPDATE dentries SET ino=?4,type=?5,begin=?6 WHERE parent=?1 AND cookie=?2 AND name=?3`,
	stXattrArchive: `INSERT OR FAIL INTO xattr_history(ino,name,"end",value,begin)
		SELECT ino,name,?3,value,begin FROM xattrs WHERE ino=?1 AND name=?2`,
	stXattrSet: `INSERT INTO xattrs(ino,name,value,begin) VALUES(?1,?2,?4,?3)
		ON CONFLICT(ino,name) DO UPDATE SET value=excluded.value,begin=excluded.begin`,
	stXattrDelete: `DELETE FROM xattrs WHERE ino=?1 AND name=?2`,

	stExtentLast:    `SELECT off,len,blob,blob_off,begin FROM extents WHERE ino=?1 AND off<?2 ORDER BY off DESC LIMIT 1`,
	stExtentSum:     `SELECT count(*),sum(len) FROM extents WHERE ino=?1 AND off>=?2 AND off<?3 AND off+len<=?3`,
	stExtentArchive: `INSERT INTO extent_history(ino,off,"end",len,blob,blob_off,begin) VALUES(?1,?2,?3,?4,?5,?6,?7)`,
	stExtentArchiveRange: `INSERT OR FAIL INTO extent_history(ino,off,"end",len,blob,blob_off,begin)
		SELECT ino,off,?4,len,blob,blob_off,begin FROM extents WHERE ino=?1 AND off>=?2 AND off<?3 AND off+len<=?3`,
	stExtentDelete:      `DELETE FROM extents WHERE ino=?1 AND off=?2`,
	stExtentDeleteRange: `DELETE FROM extents WHERE ino=?1 AND off>=?2 AND off<?3 AND off+len<=?3`,
	stExtentTrim:        `UPDATE extents SET len=?3 WHERE ino=?1 AND off=?2`,
	stExtentInsert:      `INSERT INTO extents(ino,off,len,blob,blob_off,begin) VALUES(?1,?2,?3,?4,?5,?6)`,
	stBlobFind:          `SELECT blob,size,condemned IS NULL FROM blobs WHERE zone=?1 AND id=?2`,
	stBlobInsert: `INSERT INTO blobs(zone,id,size,place,segment,offset,refs,data) VALUES(?1,?2,?3,?4,?5,?6,?7,?8)
		ON CONFLICT DO NOTHING`,
	stBlobReplace: `UPDATE blobs SET place=?2,segment=?3,offset=?4,data=?5,condemned=NULL,removing=0 WHERE blob=?1`,
	stBlobRefs:    `UPDATE blobs SET refs=refs+?2 WHERE blob=?1`,

	stVersionFirst: `INSERT INTO version_rows(ino,n,first_rev,rev,size,actor,time)
		SELECT i.ino,1,i.content_rev,i.content_rev,i.size,r.actor,coalesce(r.time,i.btime)
		FROM inodes i LEFT JOIN operation_records r ON r.rev=i.content_rev
		WHERE i.ino=?1 AND i.version=1 ON CONFLICT DO NOTHING`,
	stVersionInsert: `INSERT INTO version_rows(ino,n,first_rev,rev,size,actor,time) VALUES(?1,?2,?3,?3,?4,?5,?6)`,
	stVersionMove:   `UPDATE version_rows SET rev=?3,size=?4,actor=?5,time=?6 WHERE ino=?1 AND n=?2`,
	stVersionMoveFirst: `INSERT INTO version_rows(ino,n,first_rev,rev,size,actor,time)
		SELECT ino,1,content_rev,?2,?3,?4,?5 FROM inodes WHERE ino=?1 AND version=1`,

	stActorInsert: `INSERT INTO actors(actor,uid,gid,pid,start,exe,cgroup,node,agent,task) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)`,
	stRecordInsert: `INSERT INTO operation_records(rev,kind,ino,parent,name,new_parent,new_name,time,actor,version,size,session,seq,before,after,digest,batch,head)
		VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18)`,
	stHeadUpdate: `UPDATE counters SET rev=?2,head=?3,barrier=max(barrier,?4),topology=topology+?5,inodes=inodes+?6,bytes=bytes+?7,
		history=history+?8 WHERE zone=?1 AND kind=0 AND id=0 AND rev=?9 AND sessions=?10`,
	stUsageUpdate: `UPDATE counters SET inodes=inodes+?3,bytes=bytes+?4 WHERE zone=?1 AND kind=1 AND id=?2`,
	stUsageInsert: `INSERT INTO counters(zone,kind,id,inodes,bytes) VALUES(?1,1,?2,?3,?4)`,
}

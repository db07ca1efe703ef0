package sqlite

const vfsName = "unix-excl"

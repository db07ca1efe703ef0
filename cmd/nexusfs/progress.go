package main

import (
	"time"

	"github.com/schollz/progressbar/v3"
)

// progressBar shows how far a long command is, when standard error is a
// terminal; else it shows nothing.
type progressBar struct {
	bar   *progressbar.ProgressBar // nil: nothing is shown
	app   *app
	shown bool
	phase string
}

func (a *app) newProgress() *progressBar {
	return &progressBar{app: a, shown: isTerminal(a.stderr)}
}

// show moves the bar; a new phase begins a new one.
func (p *progressBar) show(at progress) {
	if !p.shown {
		return
	}
	if p.bar == nil || p.phase != at.Phase {
		p.done()
		total := at.Total
		if total == 0 {
			total = -1 // a spinner
		}
		p.phase = at.Phase
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.app.stderr),
			progressbar.OptionSetDescription(escapeName(at.Phase)),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionSetWidth(30))
	}
	_ = p.bar.Set64(at.Done) // a bar that cannot be drawn is no error of the command
}

// done removes the bar from the screen.
func (p *progressBar) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
		p.bar = nil
	}
}

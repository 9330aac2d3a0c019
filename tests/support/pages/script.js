window.scripts = (window.scripts || 0) + 1;

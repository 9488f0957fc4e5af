
 ababababababababababababababababx
pij-0abc12345617 